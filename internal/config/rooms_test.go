package config_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/vif"
)

func load(t *testing.T, text string) config.Config {
	t.Helper()
	l, err := config.Load(from(text))
	if err != nil {
		t.Fatal(err)
	}
	return l.Config
}

// The tags and the rooms say the same defaults: whoever uses a room alone gets what the
// documentation of the options says.
func TestRoomsHaveTheSameDefaults(t *testing.T) {
	c := load(t, "")
	a := c.ForAgent()
	for name, pair := range map[string][2]any{
		"agent":     {agent.Config{}.WithDefaults(), a.WithDefaults()},
		"inventory": {inventory.Config{}.WithDefaults(), a.Inventory.WithDefaults()},
		"migration": {migration.Config{}.WithDefaults(), a.Migration.WithDefaults()},
		"reboot":    {reboot.Config{}.WithDefaults(), a.Reboot.WithDefaults()},
		"vif":       {vif.Config{}.WithDefaults(), c.ForVIF().WithDefaults()},
		"state":     {state.Options{}.WithDefaults(), c.ForState().WithDefaults()},
	} {
		diff := cmp.Diff(pair[0], pair[1], cmpopts.IgnoreFields(agent.Config{}, "StateDir", "Driver", "Migration", "Reboot"))
		if diff != "" {
			t.Errorf("%s (-the room's +the tags'):\n%s", name, diff)
		}
	}
}

// Every option of a room can be configured, but for what is listed here.
func TestEveryRoomIsReached(t *testing.T) {
	c := load(t, `
[migration]
live_migration_bandwidth = 1
live_migration_total_bandwidth = 2
live_migration_post_copy_bandwidth = 3
parallel_connections = 2
compression = "zstd"
live_migration_permit_post_copy = true
live_migration_permit_auto_converge = true
[libvirt]
live_migration_with_native_tls = true
[agent]
host = "a"
reserved_host_cpus = 1
[vif]
vif_plugging_is_fatal = false
`)
	elsewhere := map[string]string{
		"agent.Config.MachineID":   "the machine's",
		"agent.Config.APIVersion":  "for tests",
		"agent.Config.Extra":       "for tests",
		"migration.Config.Host":    "agent.Config.Host",
		"vif.Config.OnChange":      "the caller's",
		"state.Options.NoSync":     "for simulations",
		"state.Options.Trouble":    "for simulations",
		"state.Options.Written":    "for simulations",
		"state.Options.Compacting": "for simulations",
	}
	var look func(v reflect.Value)
	look = func(v reflect.Value) {
		for f, value := range v.Fields() {
			name := v.Type().String() + "." + f.Name
			switch _, known := elsewhere[name]; {
			case known:
				delete(elsewhere, name)
			case value.Kind() == reflect.Struct:
				look(value)
			case value.IsZero():
				t.Errorf("%s can't be configured", name)
			}
		}
	}
	for _, room := range []any{c.ForAgent(), c.ForVIF(), c.ForState()} {
		look(reflect.ValueOf(room))
	}
	if len(elsewhere) > 0 {
		t.Errorf("these are gone: %v", elsewhere)
	}
}

// What a word of the file means that a room says in another way.
func TestWordsForNone(t *testing.T) {
	c := load(t, `
[agent]
reserved_host_memory_mb = 0
cpu_allocation_ratio = 2
journal_compact_above_mib = 0
[migration]
live_migration_completion_timeout = 0
[reboot]
max_retry = 0
shutdown_methods = "agent"
[vif]
max_retry = 0
vif_plugging_timeout = 0
`)
	a := c.ForAgent()
	if got := a.Inventory.WithDefaults(); got.ReservedHostMemoryMiB != 0 || got.CPUAllocationRatio != 2 {
		t.Errorf("inventory: %+v", got)
	}
	if c.ForState().CompactAbove >= 0 || a.Migration.CompletionTimeout >= 0 || a.Reboot.WithDefaults().MaxRetry != 0 ||
		c.ForVIF().WithDefaults().MaxRetry != 0 || c.ForVIF().PluggingTimeout >= 0 {
		t.Errorf("0 is taken for the default: %+v %+v %+v", c.ForState(), a.Reboot, c.ForVIF())
	}
	if m := a.Reboot.Methods; len(m) != 1 || m[0] != "agent" {
		t.Errorf("methods %v, want agent", m)
	}
	if a.Migration.CheckTimeout != time.Minute {
		t.Errorf("check_timeout %v, want 1m", a.Migration.CheckTimeout)
	}
}
