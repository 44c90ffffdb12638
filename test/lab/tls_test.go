package lab_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/lab"
)

// authority is a certificate authority of the lab's own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, "key", err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the lab's CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, "certificate", err)
	cert, err := x509.ParseCertificate(der)
	must(t, "certificate", err)
	return &authority{cert: cert, key: key, next: 2}
}

// issue puts QEMU's certificates of both roles into a host; the server's is for name.
func (a *authority) issue(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	put := func(file, kind string, der []byte) {
		path := filepath.Join(h.Outside(lab.TLSDir), file)
		must(t, file, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	put("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	for role, usage := range map[string]x509.ExtKeyUsage{"server": x509.ExtKeyUsageServerAuth, "client": x509.ExtKeyUsageClientAuth} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, "key", err)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		}
		a.next++
		der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
		must(t, "certificate", err)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		must(t, "key", err)
		put(role+"-cert.pem", "CERTIFICATE", der)
		put(role+"-key.pem", "PRIVATE KEY", private)
	}
}

// Guests leave over QEMU's own TLS, memory and disks, with certificates of an own CA, on four connections beside the main
// one, all to the address that the destination has answered. What is wrong with a certificate is said before anything is
// done, with every other reason.
func guestsLeaveOverTLS(t *testing.T) {
	s := newStage(t, "live_migration_with_native_tls = true")
	ctx := t.Context()
	spec, _ := s.withDisks(t, 40)
	task, err := s.c.BuildAndRunInstance(ctx, "h1", spec)
	s.do(t, task, err)
	check := func(args api.MigrateArgs) []string {
		args.Dest = "h2"
		reasons, err := s.c.CheckMigration(ctx, spec.UUID, args)
		must(t, "check", err)
		return reasons
	}
	if got := check(api.MigrateArgs{}); len(got) != 6 || !strings.Contains(strings.Join(got, " "), "client-cert.pem is missing") {
		t.Errorf("without any certificate: %q, want the CA and two files on either host, and which host lacks the CA", got)
	}
	ca := newAuthority(t)
	ca.issue(t, s.Host(1), "h1")
	ca.issue(t, s.Host(2), "somebody")
	if got := check(api.MigrateArgs{}); len(got) != 1 || !strings.Contains(got[0], "server-cert.pem") || !strings.Contains(got[0], "h2") {
		t.Errorf("with another host's certificate: %q, want that one reason", got)
	}
	ca.issue(t, s.Host(2), "h2")
	if got := check(api.MigrateArgs{Policy: "post_copy_now"}); len(got) != 1 || !strings.Contains(got[0], "can't do post-copy over TLS") {
		t.Errorf("post-copy over TLS: %q, want one reason", got)
	}
	if got := check(api.MigrateArgs{}); len(got) != 0 {
		t.Errorf("with good certificates: %q, want none", got)
	}

	busy := s.boot(t, 41, "h1", "ca.dirty=24")
	held := s.begin(t, busy, api.MigrateArgs{Dest: "h2", BandwidthMiB: 8}, moving)
	s.overTLS(t, busy)
	force, err := s.c.ForceCompleteMigration(ctx, held.Migration())
	s.do(t, force, err)
	s.end(t, held)
	task, err = s.c.TerminateInstance(ctx, busy.UUID)
	s.do(t, task, err)

	task, err = s.c.LiveMigration(ctx, spec.UUID, api.MigrateArgs{Dest: "h2"})
	must(t, "live_migration", err)
	m := s.end(t, task)
	if m.Progress.Disk.Total < 64<<20 {
		t.Errorf("disks of %d bytes were copied, want more than 64 MiB", m.Progress.Disk.Total)
	}
	s.only(t, spec, 2)
	gone(t, s.Host(1), spec)
	s.stop(t, spec)
	pattern{"0xa5", "1M", "48M"}.verify(t, s.Host(2).Outside(ownDisk))
}

// overTLS looks at a migration that moves memory: QEMU uses certificates and four connections beside the main one, and
// every connection goes to the address that is h2's live_migration_inbound_addr.
func (s *stage) overTLS(t *testing.T, spec instance.Spec) {
	t.Helper()
	parameters := virsh(t, s.Host(1), "qemu-monitor-command", spec.UUID, "--hmp", "info migrate_parameters")
	for _, want := range []string{"tls-creds: 'objlibvirt_migrate_tls0'", "tls-hostname: 'h2'", "multifd-channels: 4"} {
		if !strings.Contains(parameters, want) {
			t.Errorf("QEMU's parameters do not say %q:\n%s", want, parameters)
		}
	}
	must(t, "five connections", until(t.Context(), 10*time.Second, func() error {
		peers, err := s.Host(1).StreamPeers(t.Context())
		streams := map[uint16]int{}
		for _, p := range peers {
			if p.Addr() != s.Host(2).Address {
				t.Errorf("a stream goes to %s, want %s", p, s.Host(2).Address)
			}
			streams[p.Port()]++
		}
		if counts := slices.Sorted(maps.Values(streams)); err == nil && !slices.Contains(counts, 5) {
			err = fmt.Errorf("connections by port: %v", streams)
		}
		return err
	}))
}
