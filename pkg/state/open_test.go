package state_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// fill puts notes, each of that many bytes.
func fill(t *testing.T, s *state.Store, from, to, size int) {
	t.Helper()
	text := strings.Repeat("x", size)
	for i := from; i < to; i += 100 {
		err := s.Update(t.Context(), func(tx *state.Tx) error {
			for j := i; j < min(i+100, to); j++ {
				if err := notes.Put(tx, fmt.Sprintf("%06d", j), note{text}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// quick opens a journal without fsync.
func quick(t *testing.T, dir string) *state.Store {
	t.Helper()
	s, err := state.Open(t.Context(), dir, state.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A file that can't be read whole is not begun with, not changed and not thrown away.
// Some of these end the process when bbolt meets them.
func TestDamagedFileIsSetAside(t *testing.T) {
	dir := t.TempDir()
	s := quick(t, dir)
	fill(t, s, 0, 5000, 300)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole := read(t, filepath.Join(dir, state.FileName))
	for name, damage := range map[string]func([]byte) []byte{
		"never a journal":    func([]byte) []byte { return bytes.Repeat([]byte("not a journal "), 1000) },
		"cut to 100 bytes":   func(b []byte) []byte { return b[:100] },
		"cut to three pages": func(b []byte) []byte { return b[:3*4096] },
		"cut in half":        func(b []byte) []byte { return b[:1<<20] },
		"zeros inside":       func(b []byte) []byte { clear(b[1<<18 : 1<<20]); return b },
		"garbage inside": func(b []byte) []byte {
			for i := 1 << 18; i < 1<<20; i++ {
				b[i] = byte(i * 7)
			}
			return b
		},
		"both heads":       func(b []byte) []byte { b[50] ^= 0xff; b[4096+50] ^= 0xff; return b },
		"keys in disorder": disordered,
		"a page twice":     func(b []byte) []byte { return referred(b, func(first uint64) uint64 { return first }) },
		"a page in itself": func(b []byte) []byte { return referred(b, func(uint64) uint64 { return branchOf(b) }) },
		"a page too far":   func(b []byte) []byte { return referred(b, func(uint64) uint64 { return 1 << 40 }) },
		"a bucket inside":  func(b []byte) []byte { b[leafOf(b)+16] = 1; return b },
		"an element too long": func(b []byte) []byte {
			binary.NativeEndian.PutUint32(b[leafOf(b)+16+12:], 1<<31)
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			damaged := damage(bytes.Clone(whole))
			if err := os.WriteFile(filepath.Join(dir, state.FileName), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, log := logged(t)
			s, err := state.Open(ctx, dir, state.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			if s.SetAside() == "" || !bytes.Equal(read(t, s.SetAside()), damaged) {
				t.Errorf("the damaged file is not at %q as it was", s.SetAside())
			}
			if text := log.String(); !strings.Contains(text, "damaged") || !strings.Contains(text, s.SetAside()) {
				t.Errorf("nobody was told: %s", text)
			}
			if err := put(s, "a", "new"); err != nil {
				t.Error(err)
			}
		})
	}
}

const page = 4096

// branchOf is the page that leads to all notes: the last one that was written.
func branchOf(b []byte) (id uint64) {
	most := uint16(0)
	for at := 2 * page; at < len(b); at += page {
		if n := binary.NativeEndian.Uint16(b[at+10:]); b[at+8] == 1 && n >= most {
			id, most = uint64(at/page), n
		}
	}
	return id
}

// leafOf is where the first page of notes begins.
func leafOf(b []byte) uint64 {
	return page * binary.NativeEndian.Uint64(b[branchOf(b)*page+16+8:])
}

// disordered exchanges the keys of two notes of one page.
func disordered(b []byte) []byte {
	at := leafOf(b)
	one, two := at+16, at+32
	one, two = one+uint64(binary.NativeEndian.Uint32(b[one+4:])), two+uint64(binary.NativeEndian.Uint32(b[two+4:]))
	for i := range uint64(6) {
		b[one+i], b[two+i] = b[two+i], b[one+i]
	}
	return b
}

// referred makes the second reference of a branch lead somewhere else.
func referred(b []byte, to func(first uint64) uint64) []byte {
	at := branchOf(b)*page + 16
	binary.NativeEndian.PutUint64(b[at+16+8:], to(binary.NativeEndian.Uint64(b[at+8:])))
	return b
}

func logged(t *testing.T) (context.Context, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	log, err := logkit.New(logkit.Options{Out: &b, Level: "debug", Format: logkit.FormatJSON})
	if err != nil {
		t.Fatal(err)
	}
	return logkit.Into(t.Context(), log), &b
}

// A disk or a permission in the way is not damage: the file stays.
func TestUnreadableFileStays(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, state.FileName)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := state.Open(t.Context(), dir, state.Options{})
	if !errors.Is(err, fault.Internal) {
		t.Fatalf("Open = %v, %v, want internal", s, err)
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		t.Errorf("what was there has gone: %v", err)
	}
}

// grown makes a journal that is long and nearly empty, and tells what is in it.
func grown(t *testing.T, dir string) (size int64, want map[string]note) {
	t.Helper()
	s := quick(t, dir)
	fill(t, s, 0, 20_000, 300)
	err := s.Update(t.Context(), func(tx *state.Tx) error {
		for i := range 19_900 {
			if err := notes.Delete(tx, fmt.Sprintf("%06d", i)); err != nil {
				return err
			}
		}
		_, err := state.AppendEvent(tx, state.OutEvent{Kind: "task", ID: "x"}, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	size, want = s.Size(), all(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(want) != 100 || size < 4<<20 {
		t.Fatalf("%d notes in %d bytes", len(want), size)
	}
	return size, want
}

func all(t *testing.T, s *state.Store) map[string]note {
	t.Helper()
	got := map[string]note{}
	err := s.View(func(tx *state.Tx) error {
		for k, r := range notes.All(tx) {
			if r.Err != nil {
				return r.Err
			}
			got[k] = r.Value
		}
		if n, last := state.CountEvents(tx), state.LastEvent(tx); n != 1 || last != 1 {
			t.Errorf("%d events, the last is %d, want one", n, last)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	size, want := grown(t, dir)
	s, err := state.Open(t.Context(), dir, state.Options{}) // shorter than the default asks for
	if err != nil {
		t.Fatal(err)
	}
	if s.Size() != size {
		t.Errorf("a file of %d bytes was compacted to %d, want that from 64 MiB", size, s.Size())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = state.Open(t.Context(), dir, state.Options{CompactAbove: 1 << 20, CompactTimeout: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, all(t, s)); s.Size() != size || d != "" {
		t.Errorf("given up, the file has %d bytes, want %d; and (-want +got):\n%s", s.Size(), size, d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = state.Open(t.Context(), dir, state.Options{CompactAbove: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if d := cmp.Diff(want, all(t, s)); s.Size() > size/4 || d != "" {
		t.Errorf("compacted, the file has %d bytes of %d, and (-want +got):\n%s", s.Size(), size, d)
	}
	if _, err := state.Open(t.Context(), dir, state.Options{LockTimeout: 1}); !errors.Is(err, fault.Conflict) {
		t.Errorf("a second Open of the compacted file = %v, want a conflict", err)
	}
	if err := put(s, "later", "v"); err != nil {
		t.Fatal(err)
	}
	want["later"] = note{"v"}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, all(t, open(t, dir))); d != "" {
		t.Errorf("what was written after it is lost (-want +got):\n%s", d)
	}
}

// A process that dies between any two steps leaves one whole journal, and the next
// one compacts it.
func TestCrashWhileCompacting(t *testing.T) {
	for _, at := range []string{"copied", "synced", "renamed"} {
		t.Run(at, func(t *testing.T) {
			dir := t.TempDir()
			size, want := grown(t, dir)
			died := errors.New("dead")
			_, err := state.Open(t.Context(), dir, state.Options{CompactAbove: 1 << 20, Compacting: func(step string) error {
				if step == at {
					return died
				}
				return nil
			}})
			if !errors.Is(err, died) {
				t.Fatalf("Open = %v, want the death", err)
			}
			left, err := filepath.Glob(filepath.Join(dir, "*.compact"))
			if err != nil || (len(left) == 1) != (at != "renamed") {
				t.Fatalf("copies that are left: %v, %v", left, err)
			}
			if len(left) == 1 && at == "copied" { // it died in the middle
				if err := os.Truncate(left[0], 5000); err != nil {
					t.Fatal(err)
				}
			}
			s, err := state.Open(t.Context(), dir, state.Options{CompactAbove: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			if d := cmp.Diff(want, all(t, s)); s.Size() > size/4 || d != "" {
				t.Errorf("%d bytes of %d, and (-want +got):\n%s", s.Size(), size, d)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*.compact")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
