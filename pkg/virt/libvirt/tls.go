package libvirt

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// tlsPostCopy is the first QEMU that can do post-copy over TLS (with GnuTLS 3.8.11);
// an older one loses the guest.
const tlsPostCopy = 10_001_000

// encrypt adds QEMU's own TLS where it is configured: for the memory and for disks.
// The certificate is checked against the destination's name, also when the stream goes
// to an address.
func (d *Driver) encrypt(ctx context.Context, r virt.MigrateRequest, p *performPlan) error {
	if !d.cfg.NativeTLS {
		return nil
	}
	if err := d.refuseTLSPostCopy(ctx, r); err != nil {
		return err
	}
	p.flags |= golibvirt.MigrateTLS
	name := r.Inbound.TLSName
	if u, err := url.Parse(r.Inbound.URI); name == "" && err == nil {
		name = u.Hostname()
	}
	if name != "" {
		p.params = append(p.params, paramString("tls.destination", name))
	}
	return nil
}

func (d *Driver) refuseTLSPostCopy(ctx context.Context, r virt.MigrateRequest) error {
	const op = "migrate"
	if !r.PostCopy {
		return nil
	}
	v, err := control(ctx, d, op, r.Instance, (*golibvirt.Libvirt).ConnectGetVersion)
	if err != nil || v >= tlsPostCopy {
		return err
	}
	return fault.Newf(fault.PreconditionFailed, op, r.Instance, "QEMU %s can't do post-copy over TLS", version(v)).
		WithHint("migrate without post-copy, or upgrade QEMU to 10.1 on both hosts")
}

// checkSending looks at what this host needs to send a guest over TLS.
func (d *Driver) checkSending(ctx context.Context, r virt.MigrateRequest) (reasons []string, err error) {
	if !d.cfg.NativeTLS {
		return nil, nil
	}
	err = d.refuseTLSPostCopy(ctx, r)
	if errors.Is(err, fault.PreconditionFailed) {
		reasons, err = append(reasons, err.Error()), nil
	}
	return append(reasons, checkCertificates(d.cfg.TLSDir, "client", "", time.Now())...), err
}

// checkArriving looks at what this host needs to receive a guest over TLS.
func (d *Driver) checkArriving(ctx context.Context, r *findings) error {
	in, err := d.inbound(ctx, "check")
	if err != nil {
		return err
	}
	r.list = append(r.list, checkCertificates(d.cfg.TLSDir, "server", in.TLSName, time.Now())...)
	return nil
}

/*
checkCertificates looks at one host's side of QEMU's TLS: the files of its role by
their fixed names (QEMU's x509 credentials), the certificate signed by the CA beside it,
valid now, meant for the role and, for a server, for the name that a source checks. What
this process may not read it can't judge, and is no reason.
*/
func checkCertificates(dir, role, name string, now time.Time) []string {
	at := func(file string) string { return filepath.Join(dir, file) }
	var reasons []string
	for _, file := range []string{"ca-cert.pem", role + "-cert.pem", role + "-key.pem"} {
		if _, err := os.Stat(at(file)); errors.Is(err, fs.ErrNotExist) {
			reasons = append(reasons, fmt.Sprintf("TLS: %s is missing", at(file)))
		}
	}
	if len(reasons) > 0 {
		return reasons
	}
	roots := x509.NewCertPool()
	pool, err1 := os.ReadFile(at("ca-cert.pem"))
	text, err2 := os.ReadFile(at(role + "-cert.pem"))
	if errors.Is(errors.Join(err1, err2), fs.ErrPermission) {
		return nil
	}
	if err := errors.Join(err1, err2); err != nil {
		return []string{"TLS: " + err.Error()}
	}
	if !roots.AppendCertsFromPEM(pool) {
		return []string{fmt.Sprintf("TLS: %s holds no certificate", at("ca-cert.pem"))}
	}
	if err := verify(text, roots, role, name, now); err != nil {
		return []string{fmt.Sprintf("TLS: %s: %v", at(role+"-cert.pem"), err)}
	}
	return nil
}

// verify checks one certificate, with those that follow it in its file.
func verify(text []byte, roots *x509.CertPool, role, name string, now time.Time) error {
	block, rest := pem.Decode(text)
	if block == nil {
		return errors.New("it holds no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	between.AppendCertsFromPEM(rest)
	usage := x509.ExtKeyUsageClientAuth
	if role == "server" {
		usage = x509.ExtKeyUsageServerAuth
	}
	_, err = cert.Verify(x509.VerifyOptions{
		DNSName: name, Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}
