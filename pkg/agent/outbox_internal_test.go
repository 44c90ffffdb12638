package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/state"
)

// TestHeldEventsWait: what a burst makes is told when it is launched; what came before
// it, meanwhile.
func TestHeldEventsWait(t *testing.T) {
	for _, behind := range []bool{false, true} {
		store, err := state.Open(t.Context(), t.TempDir(), state.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		o := newOutbox()
		append1 := func() {
			t.Helper()
			var e state.OutEvent
			err := store.Update(t.Context(), func(tx *state.Tx) (err error) {
				e, err = state.AppendEvent(tx, state.OutEvent{Kind: "task", ID: "x", MsgID: "m"}, nil)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			o.add([]state.OutEvent{e})
		}
		sees := func(want ...uint64) {
			t.Helper()
			events, bad, err := o.next(store)
			if err != nil || len(bad) > 0 {
				t.Fatal(err, bad)
			}
			var got []uint64
			for _, e := range events {
				got = append(got, e.Sequence)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("behind %t (-want +got):\n%s", behind, d)
			}
		}
		o.begin(0)
		if !behind {
			sees() // the journal has none: from now on memory has them
		}
		append1()
		o.hold()
		append1()
		o.hold() // a second one moves nothing
		sees(1)
		o.tell(1)
		sees()
		<-o.wake // of what was added
		o.letOut()
		select {
		case <-o.wake:
		default:
			t.Error("what was held is let out, and nobody is woken")
		}
		append1()
		sees(2, 3)
	}
}
