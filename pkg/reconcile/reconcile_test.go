package reconcile_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/reconcile"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func record(s instance.VMState) []instance.Instance {
	return []instance.Instance{{UUID: "a", Generation: 2, VMState: s}}
}

func domain(s virt.State, id int, generation uint64) []virt.Domain {
	return []virt.Domain{{UUID: "a", ID: id, State: s, Owned: true, Generation: generation}}
}

func TestDiff(t *testing.T) {
	held := map[string]bool{"a": true}
	cases := []struct {
		name    string
		records []instance.Instance
		domains []virt.Domain
		held    map[string]bool
		want    []reconcile.Repair
	}{
		{"nothing", nil, nil, nil, nil},
		{"runs as believed", record(instance.VMActive), domain(virt.Running, 1, 2), nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Keep, Active: true}}},
		{"off as believed", record(instance.VMStopped), domain(virt.Shutoff, -1, 2), nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Keep}}},
		{
			"went off", record(instance.VMActive), domain(virt.Shutoff, -1, 2), nil,
			[]reconcile.Repair{{Instance: "a", Action: reconcile.Restate, VMState: instance.VMStopped}},
		},
		{
			"runs though stopped", record(instance.VMStopped), domain(virt.Running, 3, 2), nil,
			[]reconcile.Repair{{Instance: "a", Action: reconcile.Restate, VMState: instance.VMActive, Active: true}},
		},
		{"gone", record(instance.VMActive), nil, nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Missing}}},
		{"gone while building", record(instance.VMBuilding), nil, nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Keep}}},
		{"gone, error known", record(instance.VMError), nil, nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Keep}}},
		{"held", record(instance.VMActive), nil, held, []reconcile.Repair{{Instance: "a", Action: reconcile.Skip}}},
		{"held domain without a record", nil, domain(virt.Paused, 1, 3), held, []reconcile.Repair{{Instance: "a", Action: reconcile.Skip, Active: true}}},
		{"unknown domain of ours", nil, domain(virt.Running, 1, 2), nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Quarantine, Active: true}}},
		{"other generation", record(instance.VMActive), domain(virt.Running, 1, 3), nil, []reconcile.Repair{{Instance: "a", Action: reconcile.Quarantine, Active: true}}},
		{"foreign is not looked at", nil, []virt.Domain{{UUID: "f", ID: 1, State: virt.Running}}, nil, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := reconcile.Diff(c.records, c.domains, c.held)
			if d := cmp.Diff(c.want, got, cmpopts.IgnoreFields(reconcile.Repair{}, "Reason")); d != "" {
				t.Errorf("Diff (-want +got):\n%s", d)
			}
			for _, r := range got {
				if (r.Action == reconcile.Keep) != (r.Reason == "") {
					t.Errorf("%s has the reason %q", r.Action, r.Reason)
				}
			}
		})
	}
}
