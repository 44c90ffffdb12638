package lab_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// rewrite replaces texts, each of which must be there, in a file.
func rewrite(t *testing.T, file string, pairs ...string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	must(t, "read", err)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(string(raw), pairs[i]) {
			t.Fatalf("%s has no %q:\n%s", file, pairs[i], raw)
		}
	}
	must(t, "write", os.WriteFile(file, []byte(strings.NewReplacer(pairs...).Replace(string(raw))), 0o600))
}

// connected tells whether a host has a connection to an address and port, of whatever process.
func connected(t *testing.T, h *lab.Host, to netip.AddrPort) error {
	t.Helper()
	out, err := h.Command(t.Context(), "ss", "-Htn", "state", "established", "dst", to.String()).Output()
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("no connection to %s", to)
	}
	return err
}

// Guests arrive at an address of their own: live_migration_inbound_addr is told to the source, fills the template
// live_migration_uri (which names the port), and is where libvirtd is dialled and the memory goes.
func guestsArriveAtAnotherAddress(t *testing.T) {
	s := newStage(t)
	ctx, h := t.Context(), s.Host(2)
	inbound := netip.AddrFrom4([4]byte{10, 77, 0, 112})
	must(t, "address", h.Command(ctx, "ip", "address", "add", inbound.String()+"/24", "dev", "mgmt0").Run())
	must(t, "stop libvirtd", h.StopLibvirt(ctx, false))
	rewrite(t, h.Outside("/etc/libvirt/libvirtd.conf"), fmt.Sprintf("listen_addr = %q", h.Address), `listen_addr = "0.0.0.0"`)
	rewrite(t, h.Outside("/etc/libvirt/qemu.conf"), fmt.Sprintf("migration_address = %q", h.Address), `migration_address = "0.0.0.0"`)
	must(t, "start libvirtd", h.StartLibvirt(ctx, 30*time.Second))
	s.agent(2).Stop()
	dir, err := s.Dir("agent-" + h.Name)
	must(t, "folder", err)
	rewrite(t, filepath.Join(dir, "compute-agent.toml"), fmt.Sprintf("live_migration_inbound_addr = %q", h.Address), fmt.Sprintf("live_migration_inbound_addr = %q", inbound),
		`"qemu+tcp://%s/system"`, `"qemu+tcp://%s:16509/system"`)
	must(t, "start", s.agent(2).Start(ctx))

	spec := s.boot(t, 10, "h1", "ca.dirty=24")
	held := s.begin(t, spec, api.MigrateArgs{Dest: "h2", BandwidthMiB: 8}, moving)
	must(t, "libvirtd is dialled there", until(ctx, 10*time.Second, func() error { return connected(t, s.Host(1), netip.AddrPortFrom(inbound, 16509)) }))
	if connected(t, s.Host(1), netip.AddrPortFrom(h.Address, 16509)) == nil {
		t.Errorf("libvirtd is dialled at %s too", h.Address)
	}
	peers, err := s.Host(1).StreamPeers(ctx)
	if err != nil || len(peers) == 0 {
		t.Errorf("streams: %v, %v", peers, err)
	}
	for _, p := range peers {
		if p.Addr() != inbound {
			t.Errorf("a stream goes to %s, want %s", p, inbound)
		}
	}
	force, err := s.c.ForceCompleteMigration(ctx, held.Migration())
	s.do(t, force, err)
	s.end(t, held)
	s.only(t, spec, 2)
}
