package config

import (
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Embedded is the rpc.url that means a server inside the process.
const Embedded = "embedded"

// IsEmbedded reports whether the agent brings its own NATS server.
func (r RPC) IsEmbedded() bool { return r.URL == Embedded }

// HostName is Host, or the name that the operating system gives.
func (a Agent) HostName() (string, error) {
	if a.Host != "" {
		return a.Host, nil
	}
	return os.Hostname()
}

// cross checks what concerns more than one option.
func (l *Loaded) cross(found *problems) {
	l.checkURL(found)
	if l.Agent.ServiceDownTime <= l.Agent.ReportInterval {
		found.add(l.origin("agent.service_down_time"), "agent.service_down_time must be longer than agent.report_interval, or every host is down now and then", "")
	}
	if (l.RPC.TLSCert == "") != (l.RPC.TLSKey == "") {
		found.add(l.origin("rpc.tls_cert"), "rpc.tls_cert and rpc.tls_key go together", "")
	}
	if l.RPC.Credentials != "" && l.RPC.NKey != "" {
		found.add(l.origin("rpc.nkey_file"), "rpc.credentials_file and rpc.nkey_file are two ways to log in; choose one", "")
	}
	if !filepath.IsAbs(l.Agent.StateDir) {
		found.add(l.origin("agent.state_dir"), "agent.state_dir: \""+l.Agent.StateDir+"\" is not an absolute path", "")
	}
	if l.Agent.Driver == "libvirt" && l.Libvirt.MaxMigrations < l.Migration.Outbound {
		found.add(l.origin("libvirt.max_migrations"), "libvirt.max_migrations is less than migration.max_concurrent_live_migrations", "")
	}
	l.checkMethods(found)
	l.checkCompression(found)
	if l.Fake.Hosts > 1 && l.Agent.Driver != "fake" {
		found.add(l.origin("fake.hosts"), "fake.hosts: only the fake driver simulates several hosts", "add --driver fake")
	}
}

// checkCompression refuses a compression that would never be in force.
func (l *Loaded) checkCompression(found *problems) {
	m := l.forMigration()
	r := virt.MigrateRequest{Compression: m.Compression, Parallel: m.Parallel}
	if m.NativeTLS { // several by themselves
		r.Parallel = max(r.Parallel, 1)
	}
	for _, reason := range r.CompressionReasons() {
		found.add(l.origin("migration.compression"), "migration.compression: "+reason+" (migration.parallel_connections, libvirt.live_migration_with_native_tls)", "")
	}
}

func (l *Loaded) checkMethods(found *problems) {
	for method := range strings.FieldsSeq(l.Reboot.Methods) {
		if method != string(virt.ShutdownACPI) && method != string(virt.ShutdownAgent) {
			found.add(l.origin("reboot.shutdown_methods"), "reboot.shutdown_methods: \""+method+"\" is neither acpi nor agent", "")
		}
	}
	if strings.TrimSpace(l.Reboot.Methods) == "" {
		found.add(l.origin("reboot.shutdown_methods"), "reboot.shutdown_methods: name at least one of acpi and agent", "")
	}
}

func (l *Loaded) checkURL(found *problems) {
	if l.RPC.IsEmbedded() {
		if host, _, err := net.SplitHostPort(l.RPC.Listen); err != nil || !isLoopback(host) {
			found.add(l.origin("rpc.embedded_listen"), "rpc.embedded_listen: the embedded server has no authentication and listens on loopback only",
				"for several machines run nats-server and set rpc.url to it")
		}
		return
	}
	for part := range strings.SplitSeq(l.RPC.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			found.add(l.origin("rpc.url"), "rpc.url: \""+redact(part)+"\" is not a NATS URL", "write nats://HOST:4222, tls://HOST:4222 or embedded")
		}
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (l *Loaded) origin(key string) string {
	for _, s := range l.settings {
		if s.Key == key {
			return s.Origin
		}
	}
	return key
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
