package libvirt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  time.Time
}

func newAuthority(t *testing.T, now time.Time) authority {
	t.Helper()
	a := authority{t: t, now: now}
	a.cert, a.key = a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "CA"}})
	return a
}

func (a authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), a.now.Add(-time.Hour), a.now.Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// write puts the files of one role into a folder.
func (a authority) write(dir, role, name string, usage x509.ExtKeyUsage) {
	a.t.Helper()
	cert, _ := a.sign(&x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{usage}})
	for file, der := range map[string][]byte{"ca-cert.pem": a.cert.Raw, role + "-cert.pem": cert.Raw, role + "-key.pem": {}} {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

func TestCheckCertificates(t *testing.T) {
	now := time.Now()
	ca, other := newAuthority(t, now), newAuthority(t, now)
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	cases := []struct {
		name  string
		role  string
		host  string // that is checked; "" is not
		at    time.Time
		files func(dir string)
		want  []string
	}{
		{"good server", "server", "h2", now, func(dir string) { ca.write(dir, "server", "h2", server) }, nil},
		{"good client", "client", "", now, func(dir string) { ca.write(dir, "client", "x", client) }, nil},
		{"nothing there", "client", "", now, func(string) {}, []string{"ca-cert.pem is missing", "client-cert.pem is missing", "client-key.pem is missing"}},
		{"another name", "server", "h3", now, func(dir string) { ca.write(dir, "server", "h2", server) }, []string{"not h3"}},
		{"expired", "server", "h2", now.Add(2 * time.Hour), func(dir string) { ca.write(dir, "server", "h2", server) }, []string{"expired"}},
		{"not for this role", "server", "h2", now, func(dir string) { ca.write(dir, "server", "h2", client) }, []string{"incompatible key usage"}},
		{"another authority", "server", "h2", now, func(dir string) {
			ca.write(dir, "server", "h2", server)
			apart := t.TempDir()
			other.write(apart, "server", "h2", server)
			if err := os.Rename(filepath.Join(apart, "ca-cert.pem"), filepath.Join(dir, "ca-cert.pem")); err != nil {
				t.Fatal(err)
			}
		}, []string{"unknown authority"}},
		{"no certificate in the file", "client", "", now, func(dir string) {
			ca.write(dir, "client", "x", client)
			if err := os.WriteFile(filepath.Join(dir, "client-cert.pem"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"holds no certificate"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			c.files(dir)
			got := checkCertificates(dir, c.role, c.host, c.at)
			if len(got) != len(c.want) {
				t.Fatalf("reasons %q, want %q", got, c.want)
			}
			for i := range got {
				if !strings.Contains(got[i], c.want[i]) {
					t.Errorf("reason %q, want %q in it", got[i], c.want[i])
				}
			}
		})
	}
}

// The destination's answer names its certificate; without one it is the URI's host.
func TestTLSNamesTheDestination(t *testing.T) {
	secure := func(_ *daemon, c *Config) { c.NativeTLS = true }
	withRig(t, secure, func(r rig) {
		t := r.t
		for name, want := range map[string]string{"": "h2", "node2.example": "node2.example"} {
			req := r.guest(t)
			req.Inbound.TLSName = name
			var plan performPlan
			if err := r.d.encrypt(t.Context(), req, &plan); err != nil {
				t.Fatal(err)
			}
			if got := fieldsOf(plan.params).text("tls.destination"); got != want || plan.flags&golibvirt.MigrateTLS == 0 {
				t.Errorf("TLS name %q: tls.destination %q, flags %d, want %q and TLS", name, got, plan.flags, want)
			}
		}
	})
}

func TestCheckLeavingNamesEveryReason(t *testing.T) {
	withRig(t, func(_ *daemon, c *Config) { c.NativeTLS, c.TLSDir = true, "/nonexistent" }, func(r rig) {
		got, err := r.d.CheckLeaving(r.t.Context(), virt.MigrateRequest{Instance: instance.NewUUID(), Parallel: 4})
		if err != nil || len(got.Reasons) != 3 {
			r.t.Errorf("CheckLeaving without certificates = %q, %v, want one reason for each file", got, err)
		}
	})
	withRig(t, nil, func(r rig) {
		got, err := r.d.CheckLeaving(r.t.Context(), virt.MigrateRequest{Instance: instance.NewUUID(), Parallel: 4, PostCopy: true})
		if err != nil || len(got.Reasons) != 1 {
			r.t.Errorf("CheckLeaving with post-copy and parallel connections = %q, %v, want one reason", got, err)
		}
	})
}

// QEMU that does not run as root needs the kernel's permission for post-copy.
func TestPostCopyNeedsUserfaultfd(t *testing.T) {
	for _, c := range []struct {
		allowed string
		said    bool
		user    string
		reasons int
	}{
		{"0\n", true, "64055", 1},
		{"1\n", true, "64055", 0},
		{"0\n", true, "0", 0},
		{"0\n", true, "", 0},
		{"", false, "64055", 0},
	} {
		if got := postCopyReasons(c.allowed, c.said, c.user); len(got) != c.reasons {
			t.Errorf("%+v: %q, want %d reasons", c, got, c.reasons)
		}
	}
	caps, err := parseCapabilities("test", `<capabilities><host><uuid>u</uuid>
		<secmodel><model>apparmor</model><doi>0</doi></secmodel>
		<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+108</baselabel></secmodel></host></capabilities>`)
	if err != nil || caps.qemuUser != "64055" {
		t.Errorf("QEMU's user is %q, %v, want 64055", caps.qemuUser, err)
	}
}
