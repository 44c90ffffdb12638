package api_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/internal/jsonkit/jsontest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

const id = "0b6e8e43-9a1c-4a55-8a5b-0c1d2e3f4a5b"

func TestDecode(t *testing.T) {
	cases := []struct {
		name, body string
		args       any
		want       string // part of the error; empty: none
	}{
		{"good", `{"instance":"` + id + `"}`, &api.InstanceArgs{}, ""},
		{"unknown member is ignored", `{"instance":"` + id + `","colour":"red"}`, &api.InstanceArgs{}, ""},
		{"wrong type is named", `{"instance":7}`, &api.InstanceArgs{}, "instance is a number, want a string"},
		{"nested wrong type is named", `{"spec":{"vcpus":"two"}}`, &api.BuildArgs{}, "spec.vcpus is a string, want an integer"},
		{"not an object", `[1]`, &api.InstanceArgs{}, "the body is an array, want an object"},
		{"flag", `{"instance":"` + id + `","clean_shutdown":"yes"}`, &api.StopArgs{}, "clean_shutdown is a string, want true or false"},
		{"digits", `{"instance":"` + id + `","tail_length":1.5}`, &api.ConsoleArgs{}, "tail_length is a number 1.5, want an integer"},
		{"not JSON", `{`, &api.InstanceArgs{}, "not a JSON object"},
		{"two objects", `{"instance":"` + id + `"}{}`, &api.InstanceArgs{}, "more than one"},
		{"empty", ``, &api.NoArgs{}, ""},
		{"missing uuid", `{}`, &api.InstanceArgs{}, "is not a UUID"},
		{"reboot type", `{"instance":"` + id + `","reboot_type":"soft"}`, &api.RebootArgs{}, "SOFT or HARD"},
		{"no dest", `{"instance":"` + id + `"}`, &api.MigrateArgs{}, "name the destination"},
		{"policy", `{"instance":"` + id + `","dest":"b","policy":"x"}`, &api.MigrateArgs{}, "policy"},
		{"compression", `{"instance":"` + id + `","dest":"b","compression":"lz4"}`, &api.MigrateArgs{}, "use xbzrle, mt, zlib, zstd or none"},
		{"event status", `{"events":[{"name":"a","instance":"` + id + `","status":"done"}]}`, &api.ExternalEventArgs{}, "status"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := api.Decode("m", []byte(c.body), c.args)
			if c.want == "" {
				if err != nil {
					t.Fatalf("Decode = %v, want nil", err)
				}
				return
			}
			if !errors.Is(err, fault.InvalidArgument) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Decode = %v, want invalid_argument with %q", err, c.want)
			}
		})
	}
}

// The wire takes each policy and each compression that there is, the word for none, and
// names them all when it refuses another.
func TestMigrateWords(t *testing.T) {
	args := api.MigrateArgs{Instance: id, Dest: "b"}
	for _, w := range []struct {
		words []string
		word  *string
		want  string
	}{
		{instance.Policies(), &args.Policy, "use adaptive, nova, pause_now or post_copy_now"},
		{append(instance.Compressions(), instance.CompressNone), &args.Compression, "use xbzrle, mt, zlib, zstd or none"},
	} {
		for _, *w.word = range w.words {
			if err := args.Check(); err != nil {
				t.Errorf("%s: %v", *w.word, err)
			}
		}
		*w.word = "no-such"
		if err := args.Check(); err == nil || !strings.Contains(err.Error(), w.want) {
			t.Errorf("%v, want %q", err, w.want)
		}
		*w.word = ""
	}
}

func TestCheckVersion(t *testing.T) {
	cases := []struct {
		own, theirs string
		want        fault.Kind
	}{
		{"1.0", "", ""},
		{"1.0", "1.0", ""},
		{"1.1", "1.0", ""},
		{"1.0", "1.1", fault.UnsupportedVersion},
		{"1.0", "2.0", fault.UnsupportedVersion},
		{"2.0", "1.0", fault.UnsupportedVersion},
		{"1.0", "one", fault.InvalidArgument},
		{"1.0", "1.-1", fault.InvalidArgument},
	}
	for _, c := range cases {
		if got := fault.KindOf(api.CheckVersion(c.own, c.theirs)); got != c.want {
			t.Errorf("CheckVersion(%q, %q) = %q, want %q", c.own, c.theirs, got, c.want)
		}
	}
}

func TestMethodTable(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range api.Methods() {
		if seen[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[m.Name] = true
		if m.Args == nil || m.Args() == nil || m.Doc == "" {
			t.Errorf("%s lacks arguments or a sentence", m.Name)
		}
		if m.Peer && m.Style != api.Call {
			t.Errorf("%s: peers speak in calls", m.Name)
		}
	}
	if _, ok := api.Find(api.LiveMigration); !ok || seen["nope"] {
		t.Error("Find is wrong")
	}
}

func TestHostDown(t *testing.T) {
	now := time.Unix(1000, 0)
	v := api.HostView{ReportedAt: now.Add(-time.Minute)}
	if v.Down(now, time.Minute) || !v.Down(now.Add(time.Nanosecond), time.Minute) {
		t.Error("a host is down strictly after service_down_time")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("live_migration", []byte(`{"instance":"`+id+`","dest":"b"}`))
	f.Add("build_and_run_instance", []byte(`{"spec":{}}`))
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		m, ok := api.Find(method)
		if !ok {
			return
		}
		if err := api.Decode(method, body, m.Args()); err != nil && !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Decode(%s, %q) = %v, want invalid_argument or nothing", method, body, err)
		}
	})
}

func TestResultsWriteThemselves(t *testing.T) {
	some := instance.Instance{UUID: "u1", Host: "h1", VMState: instance.VMActive}
	jsontest.Same(t, api.InstanceResult{Instance: some})
	jsontest.Same(t, api.InstancesResult{Instances: []instance.Instance{some, {}}})
	jsontest.Same(t, api.InstancesResult{Instances: []instance.Instance{}})
}

func TestTaskEventWritesItself(t *testing.T) {
	jsontest.Same(t, api.TaskEvent{
		RequestID: "an id", Method: api.PauseInstance, Host: "host", Instance: "i", Migration: "m", State: api.TaskFailed,
		Result: []byte(`[1]`), Error: fault.New(fault.NotFound, "op", "subject", "text"), At: time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC),
	})
}
