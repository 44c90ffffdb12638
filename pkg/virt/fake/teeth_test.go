package fake_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
	"github.com/compute-agent/compute-agent/pkg/virt/virttest"
)

// broken is a driver with one defect; which one is its name.
type broken struct {
	*fake.Driver
	defect string
}

// defects maps each to the case of the suite that must find it.
var defects = map[string]string{
	"start again fails":          "start and destroy",
	"destroy of off fails":       "start and destroy",
	"undefine again fails":       "undefine is idempotent",
	"undefine takes the running": "undefine is idempotent",
	"plain errors":               "not found everywhere",
	"check finds nothing":        "check gives every reason",
	"tail is everything":         "console",
	"restore without a save":     "wrong states",
	"no connected":               "events in order",
	"cancel goes on":             "events end with cancel",
	"generation is lost":         "live migration",
	"job stands still":           "job statistics move",
	"abort does nothing":         "abort",
	"twice is fine":              "two migrations of one guest",
	"cancel kills":               "prepare incoming is idempotent",
	"job ends with its caller":   "the job outlives its caller",
}

func (b *broken) Start(ctx context.Context, id string) error {
	if d, err := b.Lookup(ctx, id); b.defect == "start again fails" && err == nil && d.Active() {
		return fault.New(fault.Conflict, "Start", id, "it runs")
	}
	return b.Driver.Start(ctx, id)
}

func (b *broken) Destroy(ctx context.Context, id string) error {
	if d, err := b.Lookup(ctx, id); b.defect == "destroy of off fails" && err == nil && !d.Active() {
		return fault.New(fault.Conflict, "Destroy", id, "it is off")
	}
	return b.Driver.Destroy(ctx, id)
}

func (b *broken) Undefine(ctx context.Context, id string, files bool) error {
	if _, err := b.Lookup(ctx, id); b.defect == "undefine again fails" && err != nil {
		return err
	}
	if b.defect == "undefine takes the running" {
		_ = b.Driver.Destroy(ctx, id)
	}
	return b.Driver.Undefine(ctx, id, files)
}

func (b *broken) Stats(ctx context.Context, id string) (virt.Stats, error) {
	s, err := b.Driver.Stats(ctx, id)
	if b.defect == "plain errors" && err != nil {
		err = errors.New(err.Error())
	}
	return s, err
}

func (b *broken) Check(ctx context.Context, d virt.Definition) ([]string, error) {
	if b.defect == "check finds nothing" {
		return nil, nil
	}
	return b.Driver.Check(ctx, d)
}

func (b *broken) Console(ctx context.Context, id string, n int) ([]byte, error) {
	if b.defect == "tail is everything" {
		n = 0
	}
	return b.Driver.Console(ctx, id, n)
}

func (b *broken) Restore(ctx context.Context, id string) error {
	err := b.Driver.Restore(ctx, id)
	if b.defect == "restore without a save" && errors.Is(err, fault.Conflict) {
		return b.Driver.Start(ctx, id)
	}
	return err
}

func (b *broken) Subscribe(fn func(virt.Event)) func() {
	cancel := b.Driver.Subscribe(func(e virt.Event) {
		if b.defect != "no connected" || e.Kind != virt.EventConnected {
			fn(e)
		}
	})
	if b.defect == "cancel goes on" {
		return func() {}
	}
	return cancel
}

func (b *broken) Migrate(ctx context.Context, r virt.MigrateRequest) error {
	switch b.defect {
	case "generation is lost":
		r.Generation = 1
	case "twice is fine":
		if err := b.Driver.Migrate(ctx, r); !errors.Is(err, fault.Conflict) {
			return err
		}
		return nil
	}
	err := b.Driver.Migrate(ctx, r)
	if b.defect == "job ends with its caller" && ctx.Err() != nil {
		_ = b.Driver.AbortJob(context.WithoutCancel(ctx), r.Instance)
	}
	return err
}

func (b *broken) Job(ctx context.Context, id string) (virt.Job, error) {
	j, err := b.Driver.Job(ctx, id)
	if b.defect == "job stands still" && j.Type == virt.JobUnbounded {
		j.Memory.Remaining, j.Memory.Processed = j.Memory.Total, 1
	}
	return j, err
}

func (b *broken) AbortJob(ctx context.Context, id string) error {
	if d, err := b.Lookup(ctx, id); b.defect == "abort does nothing" && err == nil && d.Active() {
		return nil
	}
	return b.Driver.AbortJob(ctx, id)
}

func (b *broken) CancelIncoming(ctx context.Context, id, migration string) error {
	err := b.Driver.CancelIncoming(ctx, id, migration)
	if b.defect == "cancel kills" && errors.Is(err, fault.Conflict) {
		return b.Driver.Destroy(ctx, id)
	}
	return err
}

// defectVariable names the defect for the run of this test inside itself.
const defectVariable = "COMPUTE_AGENT_TEST_DEFECT"

// TestSuiteHasTeeth runs the suite on drivers with one defect each, in a process
// of its own: it must fail there, in the right case.
func TestSuiteHasTeeth(t *testing.T) {
	if defect := os.Getenv(defectVariable); defect != "" {
		suiteOnBroken(t, defect)
		return
	}
	for defect, where := range defects {
		t.Run(defect, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuiteHasTeeth$", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), defectVariable+"="+defect)
			out, err := cmd.CombinedOutput()
			if _, failed := errors.AsType[*exec.ExitError](err); !failed {
				t.Fatalf("the suite passed a driver in which %q: %v", defect, err)
			}
			if want := "--- FAIL: TestSuiteHasTeeth/" + strings.ReplaceAll(where, " ", "_"); !strings.Contains(string(out), want) {
				t.Errorf("the output lacks %q:\n%.2000s", want, out)
			}
		})
	}
}

func suiteOnBroken(t *testing.T, defect string) {
	t.Helper()
	inBubble := func(t *testing.T, name string, f func(t *testing.T)) {
		t.Helper()
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	virttest.SuiteWith(t, inBubble, func(t *testing.T) virttest.Rig {
		t.Helper()
		w := fake.NewWorld(life(t))
		source, dest := newHost(t, w, fake.Config{Name: "a"}), newHost(t, w, fake.Config{Name: "b"})
		r := rig(t, source, dest)
		r.Source, r.Dest = &broken{Driver: open(t, source), defect: defect}, &broken{Driver: open(t, dest), defect: defect}
		return r
	})
}
