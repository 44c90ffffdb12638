package fake_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
)

// A killed process is one whose files are looked at as they are: nothing is closed.
func reopened(t *testing.T, dir string) (*fake.Host, *fake.Driver) {
	t.Helper()
	h := newHost(t, fake.NewWorld(life(t)), fake.Config{Name: "a", Dir: dir})
	return h, open(t, h)
}

// What was answered is there after a kill, and what happened is counted on.
func TestEffectsOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	h, d := reopened(t, dir)
	kept, gone := newSpec(), newSpec()
	mustStart(t, d, kept)
	mustStart(t, d, gone)
	if err := d.Destroy(t.Context(), gone.UUID); err != nil {
		t.Fatal(err)
	}
	if err := d.Undefine(t.Context(), gone.UUID, true); err != nil {
		t.Fatal(err)
	}
	if err := d.Pause(t.Context(), kept.UUID); err != nil {
		t.Fatal(err)
	}
	before := []fake.Effects{h.Counts(kept.UUID), h.Counts(gone.UUID)}
	h, d = reopened(t, dir)
	if diff := cmp.Diff(before, []fake.Effects{h.Counts(kept.UUID), h.Counts(gone.UUID)}); diff != "" {
		t.Errorf("counts after the kill (-before +after):\n%s", diff)
	}
	if _, err := d.Lookup(t.Context(), gone.UUID); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a guest that was removed: %v, want not_found", err)
	}
	if err := d.Unpause(t.Context(), kept.UUID); err != nil {
		t.Fatal(err)
	}
	if c := h.Counts(kept.UUID); c.Pauses != 1 || c.Unpauses != 1 {
		t.Errorf("counts = %+v, want one pause and one unpause", c)
	}
}

// A process that died in the middle of a line had answered nobody.
func TestHalfALineIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	_, d := reopened(t, dir)
	spec := newSpec()
	mustStart(t, d, spec)
	log := filepath.Join(dir, "a.log")
	whole, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Pause(t.Context(), spec.UUID); err != nil {
		t.Fatal(err)
	}
	more, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole) + 1; cut < len(more); cut += 97 {
		if err := os.WriteFile(log, more[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		h, again := reopened(t, dir)
		if got := state(t, again, spec.UUID); got != "running(booted)" || h.Counts(spec.UUID).Pauses != 0 {
			t.Fatalf("cut at %d: the guest is %s with %+v", cut, got, h.Counts(spec.UUID))
		}
		if err := again.Pause(t.Context(), spec.UUID); err != nil { // goes on behind the cut
			t.Fatal(err)
		}
		if h, again := reopened(t, dir); state(t, again, spec.UUID) != "paused(user)" || h.Counts(spec.UUID).Pauses != 1 {
			t.Fatalf("cut at %d: what was written after it was lost", cut)
		}
	}
}

// The log is folded when it is long, and a death between the two files' changes
// leaves what both say.
func TestLogIsFolded(t *testing.T) {
	dir := t.TempDir()
	h, d := reopened(t, dir)
	spec, gone := newSpec(), newSpec()
	mustStart(t, d, spec)
	mustStart(t, d, gone)
	snapshot, log := filepath.Join(dir, "a.json"), filepath.Join(dir, "a.log")
	var last []byte // the log as it was before it was folded
	folded := func() bool { _, err := os.Stat(snapshot); return err == nil }
	for n := 0; !folded(); n++ {
		if n > 100_000 {
			t.Fatal("the log was never folded")
		}
		if n%100 == 0 {
			var err error
			if last, err = os.ReadFile(log); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Pause(t.Context(), spec.UUID); err != nil {
			t.Fatal(err)
		}
		if err := d.Unpause(t.Context(), spec.UUID); err != nil {
			t.Fatal(err)
		}
	}
	want, view := h.Counts(spec.UUID), mustLookup(t, d, spec.UUID)
	now, err := os.ReadFile(log)
	if err != nil || len(now) > 1<<20 {
		t.Fatalf("the log is still %d bytes long (%v)", len(now), err)
	}
	h, d = reopened(t, dir)
	if diff := cmp.Diff(want, h.Counts(spec.UUID)) + cmp.Diff(view, mustLookup(t, d, spec.UUID)); diff != "" {
		t.Errorf("after folding (-want +got):\n%s", diff)
	}
	if err := d.Destroy(t.Context(), gone.UUID); err != nil {
		t.Fatal(err)
	}
	tail, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	// It died before the log was emptied: all lines of before are still there.
	whole := append(bytes.Clone(last), tail...)
	if err := os.WriteFile(log, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	_, d = reopened(t, dir)
	if got := mustLookup(t, d, gone.UUID); got.State != virt.Shutoff {
		t.Errorf("the guest that was destroyed last is %s", got.State)
	}
}

func mustLookup(t *testing.T, d *fake.Driver, id string) virt.Domain {
	t.Helper()
	v, err := d.Lookup(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// With a folder a change costs the same with many guests as with few.
func BenchmarkKeptPause(b *testing.B) {
	for _, guests := range []int{1, 5000} {
		b.Run(map[int]string{1: "one guest", 5000: "of 5000 guests"}[guests], func(b *testing.B) {
			h, err := fake.NewHost(fake.NewWorld(b.Context()), fake.Config{Name: "a", Dir: b.TempDir(), VCPUs: 1 << 20, MemoryMiB: 1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			d := h.Open()
			var id string
			for range guests {
				spec := newSpec()
				id = spec.UUID
				if err := d.Define(b.Context(), virt.Definition{Spec: spec}); err != nil {
					b.Fatal(err)
				}
			}
			if err := d.Start(b.Context(), id); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := d.Pause(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				if err := d.Unpause(b.Context(), id); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
