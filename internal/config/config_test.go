package config_test

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// from makes sources of a file's text; nil environment and flags.
func from(text string) config.Sources {
	return config.Sources{File: "a.toml", ReadAll: func(string) ([]byte, error) { return []byte(text), nil }}
}

func noFile(string) ([]byte, error) { return nil, fs.ErrNotExist }

func TestDefaults(t *testing.T) {
	l, err := config.Load(config.Sources{ReadAll: noFile})
	if err != nil {
		t.Fatal(err)
	}
	if l.Agent.Driver != "libvirt" || l.Agent.ServiceDownTime != time.Minute || !l.VIF.PluggingFatal || l.Migration.Outbound != 2 {
		t.Errorf("the defaults are not those of the tags: %+v", l.Config)
	}
	for _, s := range l.Settings() {
		if s.Origin != "default" {
			t.Errorf("%s comes from %q, want default", s.Key, s.Origin)
		}
	}
}

func TestLaterSourcesWin(t *testing.T) {
	s := from("[rpc]\nurl = \"nats://file:4222\"\nack_wait = 7\n[reboot]\nwait_soft_reboot_seconds = 90\nshutdown_timeout = \"1m30s\"\n[log]\nlevel = \"debug\"\n")
	s.Environ = []string{"COMPUTE_AGENT_RPC_URL=nats://env:4222", "COMPUTE_AGENT_LOG_LEVEL=warning", "HOME=/", "COMPUTE_AGENT_CONFIG=x"}
	s.Flags = map[string]config.Flag{"log.level": {Name: "log-level", Value: "error"}}
	l, err := config.Load(s)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, set := range l.Settings() {
		if set.Origin != "default" {
			got[set.Key] = set.Value + " from " + set.Origin
		}
	}
	want := map[string]string{
		"rpc.url":                         "nats://env:4222 from COMPUTE_AGENT_RPC_URL",
		"rpc.ack_wait":                    "7s from a.toml:3:1",
		"reboot.wait_soft_reboot_seconds": "1m30s from a.toml:5:1",
		"reboot.shutdown_timeout":         "1m30s from a.toml:6:1",
		"log.level":                       "error from --log-level",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("settings (-want +got):\n%s", d)
	}
	if l.RPC.URL != "nats://env:4222" || l.Reboot.WaitSoft != 90*time.Second || l.Log.Level != "error" {
		t.Errorf("the Config says something else than the settings: %+v", l.Config)
	}
}

func TestMistakes(t *testing.T) {
	cases := []struct {
		name, text, want, hint string
	}{
		{"unknown key", "[rpc]\n  ulr = \"x\"", `a.toml:2:3: there is no option "rpc.ulr"`, "did you mean rpc.url?"},
		{"unknown section", "[libvrit]\nuri = \"x\"", `a.toml:1:2: there is no option "libvrit"`, "did you mean libvirt?"},
		{"key without its section", "driver = \"fake\"", `a.toml:1:1: there is no option "driver"`, "did you mean agent.driver?"},
		{"key in another section", "[libvirt]\nlive_migration_bandwidth = 3", `a.toml:2:1: there is no option "libvirt.live_migration_bandwidth"`, "did you mean migration.live_migration_bandwidth?"},
		{"far from everything", "[zzz]", `a.toml:1:2: there is no option "zzz"`, "the sections are agent, rpc, libvirt, fake, migration, reboot, vif, log"},
		{"in an inline table", "log = { lvel = \"info\" }", `a.toml:1:9: there is no option "log.lvel"`, "did you mean log.level?"},
		{"dotted", "log.lvel = \"info\"", `a.toml:1:5: there is no option "log.lvel"`, "did you mean log.level?"},
		{"ratio", "[agent]\ncpu_allocation_ratio = \"much\"", "a.toml:2:1: agent.cpu_allocation_ratio: it is a string, want a number", ""},
		{"small ratio", "[agent]\nram_allocation_ratio = 0", "a.toml:2:1: agent.ram_allocation_ratio: 0 is less than 0.01", ""},
		{"shutdown method", "[reboot]\nshutdown_methods = \"acpi knock\"", "a.toml:2:1: reboot.shutdown_methods: \"knock\" is neither acpi nor agent", ""},
		{"no shutdown method", "[reboot]\nshutdown_methods = \"\"", "a.toml:2:1: reboot.shutdown_methods: name at least one of acpi and agent", ""},
		{"string for integer", "[vif]\nworkers = \"8\"", "a.toml:2:1: vif.workers: it is a string, want an integer", ""},
		{"integer for string", "[rpc]\nurl = 4222", "a.toml:2:1: rpc.url: it is an integer, want a string", ""},
		{"bad duration", "[vif]\nvif_plugging_timeout = \"5 minutes\"", "a.toml:2:1: vif.vif_plugging_timeout: \"5 minutes\" is not a duration", ""},
		{"word", "[agent]\ndriver = \"xen\"", `a.toml:2:1: agent.driver: "xen" is not one of libvirt, fake`, ""},
		{"too small", "[migration]\nlive_migration_downtime_steps = 2", "a.toml:2:1: migration.live_migration_downtime_steps: 2 is less than 3", ""},
		{"section as value", "agent = 3", `a.toml:1:1: there is no option "agent"`, ""},
		{"not TOML", "[rpc]\nurl = nats", "a.toml:2:7: ", ""},
		{"no URL", "[rpc]\nurl = \"localhost\"", `a.toml:2:1: rpc.url: "localhost" is not a NATS URL`, "write nats://HOST:4222, tls://HOST:4222 or embedded"},
		{"open embedded server", "[rpc]\nurl = \"embedded\"\nembedded_listen = \"0.0.0.0:4222\"", "a.toml:3:1: rpc.embedded_listen: the embedded server has no auth", "for several machines run nats-server and set rpc.url to it"},
		{"down before the next report", "[agent]\nreport_interval = 90", "default: agent.service_down_time must be longer than agent.report_interval", ""},
		{"many hosts on one libvirt", "[fake]\nhosts = 2", "a.toml:2:1: fake.hosts: only the fake driver", "add --driver fake"},
		{"two kinds of compression", "[migration]\nparallel_connections = 2\ncompression = \"xbzrle\"", "a.toml:3:1: migration.compression: compression xbzrle and parallel connections don't go together", ""},
		{"nothing to compress", "[migration]\ncompression = \"zstd\"", "a.toml:2:1: migration.compression: compression zstd is for parallel connections", ""},
		{"one stream with TLS", "[migration]\ncompression = \"mt\"\n[libvirt]\nlive_migration_with_native_tls = true", "a.toml:2:1: migration.compression: compression mt and parallel connections", ""},
		{"half a certificate", "[rpc]\ntls_cert = \"/c\"", "a.toml:2:1: rpc.tls_cert and rpc.tls_key go together", ""},
		{"two", "[rpc]\nulr = 1\n[log]\nlevel = \"loud\"", "config: 2 problems\n  a.toml:4:1: log.level: \"loud\" is not one of debug, info, warning, error\n  a.toml:2:1: there is no option \"rpc.ulr\" (did you mean rpc.url?)", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.Load(from(c.text))
			if !errors.Is(err, fault.InvalidArgument) || !strings.HasPrefix(err.Error(), c.want) {
				t.Fatalf("Load = %v\nwant %s", err, c.want)
			}
			if got := fault.HintOf(err); c.hint != "" && got != c.hint {
				t.Errorf("hint = %q, want %q", got, c.hint)
			}
		})
	}
}

func TestMistakesOutsideTheFile(t *testing.T) {
	s := config.Sources{ReadAll: noFile, Environ: []string{"COMPUTE_AGENT_RPC_ULR=x"}}
	if _, err := config.Load(s); err == nil || err.Error() != "COMPUTE_AGENT_RPC_ULR: no option has this name" || fault.HintOf(err) != "did you mean COMPUTE_AGENT_RPC_URL?" {
		t.Errorf("a wrong variable gives %v (%s)", err, fault.HintOf(err))
	}
	s = config.Sources{ReadAll: noFile, Flags: map[string]config.Flag{"agent.driver": {Name: "driver", Value: "xen"}}}
	if _, err := config.Load(s); err == nil || !strings.HasPrefix(err.Error(), "--driver: agent.driver: ") {
		t.Errorf("a wrong flag gives %v", err)
	}
	if _, err := config.Load(config.Sources{File: "gone.toml", ReadAll: noFile}); !errors.Is(err, fault.NotFound) {
		t.Errorf("a named file that is missing gives %v, want not_found", err)
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	l, err := config.Load(from("[rpc]\nurl = \"nats://ann:secret@h1:4222, nats://h2:4222\""))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Settings() {
		if strings.Contains(s.Value, "secret") {
			t.Errorf("%s = %s", s.Key, s.Value)
		}
	}
	if !strings.Contains(l.RPC.URL, "secret") {
		t.Error("the value itself must keep the password")
	}
}

// The example is lawful and says what the defaults say, commented out or not.
func TestExample(t *testing.T) {
	var b bytes.Buffer
	if err := config.Example(&b); err != nil {
		t.Fatal(err)
	}
	want, err := config.Load(from(""))
	if err != nil {
		t.Fatal(err)
	}
	var open strings.Builder
	for line := range strings.Lines(b.String()) {
		if rest, ok := strings.CutPrefix(line, "# "); ok && strings.Contains(line, " = ") {
			line = rest
		}
		open.WriteString(line)
	}
	for name, text := range map[string]string{"as it is": b.String(), "with every # taken away": open.String()} {
		got, err := config.Load(from(text))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		if d := cmp.Diff(want.Config, got.Config); d != "" {
			t.Errorf("%s (-defaults +example):\n%s", name, d)
		}
	}
	if n := strings.Count(open.String(), " = "); n < len(config.Options()) {
		t.Errorf("the example has %d settings of %d", n, len(config.Options()))
	}
}

func TestTable(t *testing.T) {
	env := map[string]string{}
	for _, o := range config.Options() {
		if o.Doc == "" || strings.HasSuffix(o.Doc, ".") || o.Name == "" {
			t.Errorf("%s: give it a doc without a dot", o.Key)
		}
		if other, twice := env[o.Env]; twice {
			t.Errorf("%s and %s share %s", o.Key, other, o.Env)
		}
		env[o.Env] = o.Key
	}
}

// A tag can't name a list: what a request may say of a migration, the file may say too.
func TestMigrationWords(t *testing.T) {
	words := map[string][]string{
		"migration.policy":      instance.Policies(),
		"migration.compression": instance.CompressionWords(),
	}
	for _, o := range config.Options() {
		if want, ok := words[o.Key]; ok && !slices.Equal(slices.Sorted(slices.Values(o.OneOf)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%s is one of %q, want %q", o.Key, o.OneOf, want)
		}
		delete(words, o.Key)
	}
	for key := range words {
		t.Errorf("there is no option %s", key)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("[rpc]\nurl = \"embedded\"\n")
	f.Add("a.b = { c = [1, {d = 2}] }\n[[x]]\ny = 1979-05-27\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := config.Load(from(text)); err != nil && !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("Load(%q) = %v, want invalid_argument or nothing", text, err)
		}
	})
}
