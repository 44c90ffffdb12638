package state_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/state"
)

type note struct {
	Text string `json:"text"`
}

var notes = state.Table[note]{Name: "notes", Version: 1}

func open(t *testing.T, dir string) *state.Store {
	t.Helper()
	s, err := state.Open(t.Context(), dir, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(s *state.Store, key, text string) error {
	return s.Update(context.Background(), func(tx *state.Tx) error { return notes.Put(tx, key, note{text}) })
}

func get(t *testing.T, s *state.Store, key string) (note, bool) {
	t.Helper()
	var n note
	var ok bool
	if err := s.View(func(tx *state.Tx) (err error) { n, ok, err = notes.Get(tx, key); return err }); err != nil {
		t.Fatal(err)
	}
	return n, ok
}

func TestUpdateSurvivesReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := put(s, "a", "hello"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := put(s, "b", "late"); !errors.Is(err, fault.Unavailable) {
		t.Errorf("Update after Close = %v, want unavailable", err)
	}
	s = open(t, dir)
	if n, ok := get(t, s, "a"); !ok || n.Text != "hello" {
		t.Errorf("after reopening: %v %v, want hello", n, ok)
	}
	if _, ok := get(t, s, "b"); ok {
		t.Error("a refused update is there")
	}
}

// A thousand updates at once, a tenth of them failing or panicking: the others
// are all there, the failed ones left no trace.
func TestOneFailureLeavesTheOthers(t *testing.T) {
	s := open(t, t.TempDir())
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			key := fmt.Sprintf("%04d", i)
			err := s.Update(t.Context(), func(tx *state.Tx) error {
				if err := notes.Put(tx, key, note{key}); err != nil {
					return err
				}
				switch i % 10 {
				case 3:
					return boom
				case 7:
					panic("in an update")
				}
				return nil
			})
			switch i % 10 {
			case 3:
				if !errors.Is(err, boom) {
					t.Errorf("update %d: %v, want boom", i, err)
				}
			case 7:
				if !errors.Is(err, fault.Internal) {
					t.Errorf("update %d: %v, want internal", i, err)
				}
			default:
				if err != nil {
					t.Errorf("update %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	for i := range 1000 {
		_, ok := get(t, s, fmt.Sprintf("%04d", i))
		if want := i%10 != 3 && i%10 != 7; ok != want {
			t.Errorf("record %d is there: %v, want %v", i, ok, want)
		}
	}
}

// What OnCommit does is done when Update answers, in the order of the commits, and
// not at all for an update that failed.
func TestOnCommit(t *testing.T) {
	s := open(t, t.TempDir())
	boom := errors.New("boom")
	var order, done []int // written by the writer alone
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			err := s.Update(t.Context(), func(tx *state.Tx) error {
				n, err := notes.NextSequence(tx)
				if err != nil {
					return err
				}
				tx.OnCommit(func() { order = append(order, int(n)); done = append(done, i) })
				if i%10 == 0 {
					return boom
				}
				return nil
			})
			if (i%10 == 0) != errors.Is(err, boom) {
				t.Errorf("update %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if len(done) != 180 || !slices.IsSorted(order) {
		t.Errorf("%d functions ran in the order %v, want 180, sorted", len(done), order)
	}
	if slices.ContainsFunc(done, func(i int) bool { return i%10 == 0 }) {
		t.Error("a failed update's function ran")
	}
}

func TestUpdateObeysItsContext(t *testing.T) {
	s := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	entered, release := make(chan struct{}), make(chan struct{})
	answered := make(chan error, 1)
	go func() {
		answered <- s.Update(ctx, func(*state.Tx) error { close(entered); <-release; return nil })
	}()
	<-entered
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("Update = %v, want its context's end", err)
	}
	close(release)
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := state.Open(t.Context(), dir, state.Options{LockTimeout: 1})
	if !errors.Is(err, fault.Conflict) || fault.HintOf(err) == "" {
		t.Errorf("a second Open = %v, want a conflict with a hint", err)
	}
}

func TestOtherVersionIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	newer, future := state.Table[note]{Name: "notes", Version: 2}, state.Table[note]{Name: "notes", Version: 3}
	if err := s.Update(t.Context(), func(tx *state.Tx) error { return newer.Put(tx, "a", note{"from tomorrow"}) }); err != nil {
		t.Fatal(err)
	}
	if err := put(s, "b", "today"); err != nil {
		t.Fatal(err)
	}
	err := s.View(func(tx *state.Tx) error {
		if _, _, err := notes.Get(tx, "a"); !errors.Is(err, state.ErrNewer) || !strings.Contains(err.Error(), "version 2") {
			t.Errorf("Get = %v, want ErrNewer and version 2", err)
		}
		if _, _, err := future.Get(tx, "a"); err == nil || errors.Is(err, state.ErrNewer) {
			t.Errorf("Get of an older record = %v, want another error", err)
		}
		if err := state.Newer(tx, future, newer); err != nil {
			t.Errorf("Newer of what is old = %v", err)
		}
		if err := state.Newer(tx, newer, notes); !errors.Is(err, state.ErrNewer) || !strings.Contains(err.Error(), "notes/a") {
			t.Errorf("Newer = %v, want ErrNewer and the record", err)
		}
		values, bad := notes.Values(tx)
		if len(values) != 1 || len(bad) != 1 {
			t.Errorf("Values gave %d records and %d errors, want 1 and 1", len(values), len(bad))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOutboxKeepsOrder(t *testing.T) {
	s := open(t, t.TempDir())
	for i := range 300 { // crosses a byte in the key
		if err := s.Update(t.Context(), func(tx *state.Tx) error {
			e, err := state.AppendEvent(tx, state.OutEvent{Kind: "task", ID: fmt.Sprint(i)}, nil)
			if err == nil && state.LastEvent(tx) != e.Sequence {
				t.Errorf("LastEvent = %d after appending %d", state.LastEvent(tx), e.Sequence)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	var first []state.OutEvent
	_ = s.View(func(tx *state.Tx) error { first, _ = state.PendingEvents(tx, 0, 290); return nil })
	for i, e := range first {
		if e.ID != fmt.Sprint(i) {
			t.Fatalf("event %d is %q", i, e.ID)
		}
	}
	if err := s.Update(t.Context(), func(tx *state.Tx) error { return state.DropEvents(tx, first[289].Sequence) }); err != nil {
		t.Fatal(err)
	}
	_ = s.View(func(tx *state.Tx) error {
		rest, _ := state.PendingEvents(tx, 0, 100)
		if len(rest) != 10 || rest[0].ID != "290" || state.CountEvents(tx) != 10 {
			t.Errorf("%d events are left, the first is %v, want 10 from 290", len(rest), rest)
		}
		return nil
	})
}

// The events of one transaction share records; telling may stop anywhere in one, and
// what it holds reads back as it was written.
func TestOutboxKeepsEventsTogether(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	want := make([]state.OutEvent, 0, 700)
	err := s.Update(t.Context(), func(tx *state.Tx) (err error) {
		for i := range cap(want) {
			e := state.OutEvent{Kind: "task", ID: fmt.Sprint(i), MsgID: "a\"\\\n\u00e9 €/" + fmt.Sprint(i)}
			if i%2 == 0 {
				e.Instance = "guest"
			}
			if e, err = state.AppendEvent(tx, e, map[string]any{"n": i, "s": "<é>"}); err != nil {
				return err
			}
			want = append(want, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx *state.Tx) error { return state.DropEvents(tx, want[299].Sequence) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	_ = s.View(func(tx *state.Tx) error {
		got, bad := state.PendingEvents(tx, 0, 1000)
		if diff := cmp.Diff(want[300:], got); diff != "" || len(bad) > 0 || state.CountEvents(tx) != 400 {
			t.Errorf("bad %v, %d wait, want 400 (-want +got):\n%s", bad, state.CountEvents(tx), diff)
		}
		return nil
	})
	err = s.Update(t.Context(), func(tx *state.Tx) error {
		_, err := state.AppendEvent(tx, state.OutEvent{Kind: "task", ID: "x"}, json.RawMessage(`{"cut`))
		return err
	})
	if !errors.Is(err, fault.Internal) {
		t.Errorf("a body that is no JSON: %v, want internal", err)
	}
}

// An urgent update is written before those that wait.
func TestUpdateFirst(t *testing.T) {
	s := open(t, t.TempDir())
	entered, release := make(chan struct{}), make(chan struct{})
	var order []string // written by the writer alone
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Update(t.Context(), func(*state.Tx) error { close(entered); <-release; return nil })
	})
	<-entered
	update := func(name string, do func(context.Context, func(*state.Tx) error) error) {
		wg.Go(func() {
			err := do(t.Context(), func(tx *state.Tx) error { tx.OnCommit(func() { order = append(order, name) }); return nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	for range 50 {
		update("later", s.Update)
	}
	update("first", s.UpdateFirst)
	for s.Waiting() < 51 {
		runtime.Gosched()
	}
	close(release)
	wg.Wait()
	if len(order) != 51 || order[0] != "first" {
		t.Errorf("the order is %v, want the urgent one first of 51", order)
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, c := range []struct {
		name     string
		parallel int
	}{{"alone", 0}, {"with 128 others", 64}} {
		b.Run(c.name, func(b *testing.B) {
			s, err := state.Open(b.Context(), b.TempDir(), state.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			if c.parallel == 0 {
				for b.Loop() {
					if err := put(s, "k", "v"); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.SetParallelism(c.parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := put(s, "k", "v"); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// The envelope's form is part of the promise: a journal written by version 1 is
// read by every later agent.
func TestRecordForm(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := put(s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	db, err := bbolt.Open(filepath.Join(dir, state.FileName), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	_ = db.View(func(tx *bbolt.Tx) error {
		if got := string(tx.Bucket([]byte("notes")).Get([]byte("k"))); got != `{"v":1,"d":{"text":"v"}}` {
			t.Errorf("record = %s", got)
		}
		return nil
	})
}

// A simulated crash: what was on disk when the process died stays, nobody hears of it,
// and nothing is written afterwards.
func TestDeathAfterACommit(t *testing.T) {
	dir, dead := t.TempDir(), false
	died := errors.New("the process died")
	s, err := state.Open(t.Context(), dir, state.Options{
		NoSync: true,
		Trouble: func() error {
			if dead {
				return died
			}
			return nil
		},
		Written: func() error { dead = true; return died },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := put(s, "a", "written"); !errors.Is(err, state.ErrClosed) {
		t.Errorf("the update at which the process died: %v, want %v", err, state.ErrClosed)
	}
	if err := put(s, "b", "after death"); err == nil {
		t.Error("an update after death was answered with success")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if n, ok := get(t, s, "a"); !ok || n.Text != "written" {
		t.Errorf("after the crash a = %+v, %t; want what was written", n, ok)
	}
	if _, ok := get(t, s, "b"); ok {
		t.Error("what came after death was written")
	}
}
