package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/test/natstest"
)

// authority is a CA of the test's own.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.sign(t, "ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	})
	return a
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

// sign writes FILE.pem and FILE.key.
func (a *authority) sign(t *testing.T, file string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	c.SerialNumber, c.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-2*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, a.path(file+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, a.path(file+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})))
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed, key
}

// serverCert makes one for loopback that ends at a time.
func (a *authority) serverCert(t *testing.T, file string, ip string, until time.Time) {
	t.Helper()
	a.sign(t, file, &x509.Certificate{
		Subject: pkix.Name{CommonName: "nats"}, IPAddresses: []net.IP{net.ParseIP(ip)}, NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

func (a *authority) clientCert(t *testing.T, name string, until time.Time) {
	t.Helper()
	a.sign(t, name, &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

// tls is the server's section; verify asks for client certificates.
func (a *authority) tls(file, verify string) string {
	return fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, timeout: 5 %s }\n", a.path(file+".pem"), a.path(file+".key"), a.path("ca.pem"), verify)
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// natsWith runs a server with a configuration and gives host:port.
func natsWith(t *testing.T, text string) string {
	t.Helper()
	s := natstest.InsideReady(t, natstest.File(t, natstest.Config("127.0.0.1:-1", t.TempDir(), text)))
	t.Cleanup(func() { natstest.End(s) })
	return s.Addr().String()
}

// program runs the command line with an environment.
func program(ctx context.Context, environ []string, args ...string) (out, errOut string, code int) {
	var o, e strings.Builder
	code = newApp(strings.NewReader(""), &o, &e, environ).execute(ctx, args)
	return o.String(), e.String(), code
}

// userOf makes an NKey: its seed in a file, and its public part.
func userOf(t *testing.T, dir, name string) (file, public string) {
	t.Helper()
	kp, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = kp.PublicKey(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Join(dir, name+".nk"), string(seed)+"\n"), public
}

// login is a way to log in: the server's configuration and each name's environment.
type login func(t *testing.T, names []string) (url string, environ map[string][]string)

func byCertificate(t *testing.T, names []string) (string, map[string][]string) {
	t.Helper()
	ca := newAuthority(t, "test CA")
	ca.serverCert(t, "server", "127.0.0.1", time.Now().Add(time.Hour))
	environ, users := map[string][]string{}, ""
	for _, name := range names {
		ca.clientCert(t, name, time.Now().Add(time.Hour))
		environ[name] = []string{
			"COMPUTE_AGENT_RPC_TLS_CA=" + ca.path("ca.pem"), "COMPUTE_AGENT_RPC_TLS_CERT=" + ca.path(name+".pem"), "COMPUTE_AGENT_RPC_TLS_KEY=" + ca.path(name+".key"),
		}
		out, _, code := program(t.Context(), nil, "nats-permissions", name, "--user", "CN="+name)
		if code != 0 {
			t.Fatal(out)
		}
		users += usersOf(out)
	}
	return "tls://" + natsWith(t, ca.tls("server", ", verify_and_map: true")+"authorization { users: ["+users+"] }"), environ
}

// usersOf gives the entries of what nats-permissions printed.
func usersOf(out string) string {
	m := regexp.MustCompile(`(?s)users: \[(.*)\]\s*}\s*$`).FindStringSubmatch(out)
	return m[1]
}

func byNKey(t *testing.T, names []string) (string, map[string][]string) {
	t.Helper()
	ca := newAuthority(t, "test CA")
	ca.serverCert(t, "server", "127.0.0.1", time.Now().Add(time.Hour))
	environ, args := map[string][]string{}, []string{"nats-permissions"}
	for _, name := range names {
		file, public := userOf(t, ca.dir, name)
		environ[name] = []string{"COMPUTE_AGENT_RPC_TLS_CA=" + ca.path("ca.pem"), "COMPUTE_AGENT_RPC_NKEY_FILE=" + file}
		args = append(args, name+"="+public)
	}
	out, errOut, code := program(t.Context(), nil, args...)
	if code != 0 {
		t.Fatal(errOut)
	}
	return "tls://" + natsWith(t, ca.tls("server", "")+out), environ
}

// byCreds is NATS' decentralised login: an operator signs an account, that its users.
func byCreds(t *testing.T, names []string) (string, map[string][]string) {
	t.Helper()
	dir, environ := t.TempDir(), map[string][]string{}
	operator, account := pair(t, nkeys.CreateOperator), pair(t, nkeys.CreateAccount)
	oc := jwt.NewOperatorClaims(public(t, operator))
	ac := jwt.NewAccountClaims(public(t, account))
	ac.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
	for _, name := range names {
		environ[name] = []string{"COMPUTE_AGENT_RPC_CREDENTIALS_FILE=" + creds(t, dir, name, account, time.Now().Add(time.Hour))}
	}
	conf := operatorConf(t, operator, oc, ac)
	return "nats://" + natsWith(t, conf), environ
}

// operatorConf is a server's configuration for an operator with one account, and the
// server's own.
func operatorConf(t *testing.T, operator nkeys.KeyPair, oc *jwt.OperatorClaims, ac *jwt.AccountClaims) string {
	t.Helper()
	sys := jwt.NewAccountClaims(public(t, pair(t, nkeys.CreateAccount)))
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload { %s: %s, %s: %s }\n",
		encoded(t, oc, operator), sys.Subject, sys.Subject, encoded(t, sys, operator), ac.Subject, encoded(t, ac, operator))
}

func pair(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	kp, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return kp
}

func public(t *testing.T, kp nkeys.KeyPair) string {
	t.Helper()
	s, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func encoded(t *testing.T, c jwt.Claims, kp nkeys.KeyPair) string {
	t.Helper()
	s, err := c.Encode(kp)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// creds writes a user's credentials with the rights of its name.
func creds(t *testing.T, dir, name string, account nkeys.KeyPair, until time.Time) string {
	t.Helper()
	role := rpc.RoleHost
	if name == "controller" {
		role = rpc.RoleController
	}
	r, err := rpc.Permissions("", role, name, api.PeerMethods()...)
	if err != nil {
		t.Fatal(err)
	}
	user := pair(t, nkeys.CreateUser)
	uc := jwt.NewUserClaims(public(t, user))
	uc.Expires = until.Unix()
	uc.Pub.Allow, uc.Sub.Allow = r.Publish, r.Subscribe
	if r.Responses > 0 {
		uc.Resp = &jwt.ResponsePermission{MaxMsgs: r.Responses, Expires: r.ResponseTime}
	}
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(encoded(t, uc, account), seed)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Join(dir, name+".creds"), string(text))
}

// Two agents and a controller, each with a credential of its own, as the program
// runs them: set up, create, move, delete.
func TestSecureNATS(t *testing.T) {
	t.Parallel()
	for name, way := range map[string]login{"certificate": byCertificate, "nkey": byNKey, "creds": byCreds} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, environ := way(t, []string{"controller", "node1", "node2"})
			ctl := append(environ["controller"], "COMPUTE_AGENT_RPC_URL="+url)
			must := func(want string, args ...string) {
				t.Helper()
				if out, errOut, code := program(t.Context(), ctl, args...); code != 0 || !strings.Contains(out, want) {
					t.Fatalf("%v = %d, %q, %q, want %q", args, code, out, errOut, want)
				}
			}
			must("Consumer of node1 is in place", "nats-setup", "node1", "node2")
			for _, host := range []string{"node1", "node2"} {
				runHost(t, host, append(environ[host], "COMPUTE_AGENT_RPC_URL="+url))
			}
			waitUp(t, ctl, "node1", "node2")
			must("", "instance", "create", "--host", "node1", "--name", "web1", "--vcpus", "1", "--memory", "64", "--port", "bridge=br-int0")
			must("moved from node1 to node2", "migration", "start", "web1", "--to", "node2")
			must("deleted", "instance", "delete", "web1")
		})
	}
}

// runHost runs an agent as the daemon does, until the test ends.
func runHost(t *testing.T, host string, environ []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended, dir := make(chan string, 1), t.TempDir()
	go func() {
		_, errOut, code := program(ctx, environ, "run", "--driver", "fake", "--host", host, "--state-dir", dir, "--log-format", "text")
		if code != 0 || strings.Contains(errOut, "ermission") {
			ended <- fmt.Sprintf("agent %s ended with %d:\n%s", host, code, errOut)
		}
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		if text := <-ended; text != "" {
			t.Error(text)
		}
	})
}

// waitUp waits until hosts have reported.
func waitUp(t *testing.T, environ []string, hosts ...string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	give := time.After(20 * time.Second)
	for {
		out, errOut, _ := program(t.Context(), environ, "host", "list", "-o", "json")
		if strings.Count(out, `"hypervisor": "connected"`) == len(hosts) {
			return
		}
		select {
		case <-tick.C:
		case <-give:
			t.Fatalf("the hosts did not report: %s %s", out, errOut)
		}
	}
}

// Whatever is wrong with a credential, the error names the file and what to do.
func TestRefusedNATS(t *testing.T) {
	ca, other := newAuthority(t, "test CA"), newAuthority(t, "another CA")
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	ca.serverCert(t, "server", "127.0.0.1", soon)
	ca.serverCert(t, "elsewhere", "127.0.0.9", soon)
	ca.serverCert(t, "old", "127.0.0.1", past)
	ca.clientCert(t, "node1", soon)
	ca.clientCert(t, "late", past)
	ca.clientCert(t, "stranger", soon)
	other.clientCert(t, "node1", soon)
	known, public1 := userOf(t, ca.dir, "known")
	unknown, _ := userOf(t, ca.dir, "unknown")
	broken := writeFile(t, ca.path("broken.nk"), "not a seed\n")
	users := usersText(t, "node1", "CN=node1") + usersText(t, "node1", public1)
	mutual := "tls://" + natsWith(t, ca.tls("server", ", verify_and_map: true")+"authorization { users: ["+users+"] }")
	nkey := "tls://" + natsWith(t, ca.tls("server", "")+"authorization { users: ["+users+"] }")
	elsewhere := "tls://" + natsWith(t, ca.tls("elsewhere", ""))
	old := "tls://" + natsWith(t, ca.tls("old", ""))
	plain := natsWith(t, "")
	password := natsWith(t, "authorization { user: a, password: s3cret }")

	trust := "COMPUTE_AGENT_RPC_TLS_CA=" + ca.path("ca.pem")
	cert := func(a *authority, name string) []string {
		return []string{trust, "COMPUTE_AGENT_RPC_TLS_CERT=" + a.path(name+".pem"), "COMPUTE_AGENT_RPC_TLS_KEY=" + a.path(name+".key")}
	}
	seed := func(file string) []string { return []string{trust, "COMPUTE_AGENT_RPC_NKEY_FILE=" + file} }
	for _, c := range []struct {
		name, url string
		environ   []string
		want      string
	}{
		{"the server's CA is not trusted", nkey, nil, "signed by a CA in the system's list; set rpc.tls_ca"},
		{"the wrong CA", nkey, []string{"COMPUTE_AGENT_RPC_TLS_CA=" + other.path("ca.pem")}, "set rpc.tls_ca to the CA that signed it"},
		{"a name that the certificate has not", elsewhere, []string{trust}, "certificate is for another name"},
		{"the server's certificate has expired", old, []string{trust}, "the server's certificate has expired, or the clock"},
		{"no client certificate", mutual, []string{trust}, "set rpc.tls_cert and rpc.tls_key"},
		{"an expired client certificate", mutual, cert(ca, "late"), "late.pem has expired, or a clock is wrong"},
		{"a client certificate of another CA", mutual, cert(other, "node1"), "signed by a CA that the server knows|does not know the CA that signed"},
		{"a certificate without a user", mutual, cert(ca, "stranger"), "no user for the subject of .*stranger.pem .*nats-permissions HOST --user SUBJECT"},
		{"an unknown seed", nkey, seed(unknown), "does not know the NKey in .*unknown.nk .*nk -inkey FILE -pubout"},
		{"no login", nkey, []string{trust}, "the server wants to know who this is: set rpc.nkey_file"},
		{"not a seed", nkey, seed(broken), "a seed begins with SU"},
		{"a file that is not there", nkey, seed(ca.path("gone.nk")), "set rpc.nkey_file to a file that exists"},
		{"a certificate for a CA file", nkey, []string{"COMPUTE_AGENT_RPC_TLS_CA=" + known}, "PEM files"},
		{"TLS where there is none", "tls://" + plain, []string{trust}, "the server speaks no TLS"},
		{"the wrong password", "nats://a:wrong@" + password, nil, "the server wants to know who this is"},
		{"an expired JWT", "", nil, "have expired: make new ones"},
	} {
		t.Run(c.name, func(t *testing.T) {
			url, environ := c.url, c.environ
			if url == "" {
				url, environ = expiredCreds(t)
			}
			_, errOut, code := program(t.Context(), append([]string{"COMPUTE_AGENT_RPC_URL=" + url}, environ...), "host", "list")
			if code == 0 || !regexp.MustCompile("Hint:.*("+c.want+")").MatchString(errOut) {
				t.Errorf("exit %d, %q, want a hint %q", code, errOut, c.want)
			}
			if strings.Contains(errOut, "wrong@") || strings.Contains(errOut, "a:wrong") {
				t.Errorf("the password is in %q", errOut)
			}
		})
	}
}

// usersText is one entry of a server's users, by certificate or NKey.
func usersText(t *testing.T, host, who string) string {
	t.Helper()
	args := []string{"nats-permissions", host, "--user", who}
	if !strings.HasPrefix(who, "CN=") {
		args[2] = "--nkey"
	}
	out, errOut, code := program(t.Context(), nil, args...)
	if code != 0 {
		t.Fatal(errOut)
	}
	return usersOf(out)
}

// expiredCreds is a server and credentials that are no longer good there.
func expiredCreds(t *testing.T) (string, []string) {
	t.Helper()
	operator, account := pair(t, nkeys.CreateOperator), pair(t, nkeys.CreateAccount)
	oc, ac := jwt.NewOperatorClaims(public(t, operator)), jwt.NewAccountClaims(public(t, account))
	conf := operatorConf(t, operator, oc, ac)
	file := creds(t, t.TempDir(), "node1", account, time.Now().Add(-time.Minute))
	return "nats://" + natsWith(t, conf), []string{"COMPUTE_AGENT_RPC_CREDENTIALS_FILE=" + file}
}
