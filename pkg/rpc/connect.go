package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// checkFiles refuses files of the configuration that can't be read, by the name of
// their option: the library would name neither.
func (c Config) checkFiles() error {
	for _, f := range []struct{ option, path string }{
		{"rpc.credentials_file", c.CredsFile},
		{"rpc.nkey_file", c.NKeyFile},
		{"rpc.tls_ca", c.TLSCAFile},
		{"rpc.tls_cert", c.TLSCertFile},
		{"rpc.tls_key", c.TLSKeyFile},
	} {
		if f.path == "" {
			continue
		}
		_, err := os.ReadFile(f.path)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrPermission):
			return fault.New(fault.InvalidArgument, "connect", f.option, "the file may not be read").Because(err).
				WithHint("give the user that runs this the right to read %s, and nobody else", f.path)
		default:
			return fault.New(fault.InvalidArgument, "connect", f.option, "the file can't be read").Because(err).
				WithHint("set %s to a file that exists", f.option)
		}
	}
	return nil
}

// connectFault says why nobody let us in, and what to do about it.
func connectFault(err error, cfg Config) error {
	f := natsFault(err, "connect", redactURLs(cfg.URLs))
	if hint := tlsHint(err, cfg); hint != "" {
		f.Kind, f.Hint = fault.Unauthorized, hint
		return f
	}
	switch {
	case f.Kind == fault.Unauthorized:
		f.Hint = loginHint(err, cfg)
	case errors.Is(err, nats.ErrSecureConnRequired):
		f.Kind, f.Hint = fault.Unauthorized, "the server wants TLS: write tls:// in rpc.url, and set rpc.tls_ca if its certificate is signed by a CA of your own"
	case errors.Is(err, nats.ErrSecureConnWanted):
		f.Kind, f.Hint = fault.Unauthorized, "the server speaks no TLS: configure it there, or take rpc.tls_ca, rpc.tls_cert and tls:// out here"
	default:
		f.Kind = fault.Unavailable
		f.Hint = "start a NATS server there, or let the agent start one itself with --rpc-url embedded"
	}
	return f
}

// redactURLs leaves passwords out of messages.
func redactURLs(urls []string) string {
	list := make([]string, 0, len(urls))
	for _, u := range urls {
		if scheme, rest, ok := strings.Cut(u, "://"); ok {
			if at := strings.LastIndex(rest, "@"); at >= 0 {
				u = scheme + "://" + rest[at+1:]
			}
		}
		list = append(list, u)
	}
	return strings.Join(list, ",")
}

// tlsHint explains a certificate that was refused, by us or by the server.
func tlsHint(err error, cfg Config) string {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		alert    tls.AlertError
	)
	switch {
	case errors.As(err, &unknown):
		return "the server's certificate is not signed by a CA in " + orSystem(cfg.TLSCAFile) + "; set rpc.tls_ca to the CA that signed it"
	case errors.As(err, &hostname):
		return "the server's certificate is for another name; use in rpc.url a name that it holds, or make it anew with this one"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired, or the clock of this machine is wrong; renew it on the server"
	case errors.As(err, &invalid):
		return "the server's certificate can't be used; make it anew"
	case errors.As(err, &alert), containsAny(err, "remote error: tls:", "closed by remote after TLS handshake"):
		return ownCertificateHint(err, cfg)
	case containsAny(err, "parse root certificate", "parsing rootCA", "parsing client certificate", "loading client certificate"):
		return "rpc.tls_ca, rpc.tls_cert and rpc.tls_key are PEM files, and the key belongs to the certificate"
	}
	return ""
}

// ownCertificateHint explains the server's refusal of our certificate.
func ownCertificateHint(err error, cfg Config) string {
	text := err.Error()
	switch {
	case cfg.TLSCertFile == "":
		return "the server asks for a client certificate: set rpc.tls_cert and rpc.tls_key"
	case strings.Contains(text, "expired"), expired(cfg.TLSCertFile):
		return "the certificate in " + cfg.TLSCertFile + " has expired, or a clock is wrong; renew it (rpc.tls_cert)"
	case strings.Contains(text, "unknown certificate authority"):
		return "the server does not know the CA that signed " + cfg.TLSCertFile + " (rpc.tls_cert)"
	}
	return "the server refused the certificate in " + cfg.TLSCertFile + " (rpc.tls_cert); it must be valid, for client authentication, and signed by a CA that the server knows"
}

// expired reports whether a certificate is no longer good by our clock: the server's
// word about it is often lost with the connection that it closes.
func expired(file string) bool {
	raw, err := os.ReadFile(file) //nolint:gosec // the path is the operator's
	if err != nil {
		return false
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return false
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return err == nil && time.Now().After(c.NotAfter)
}

// credsExpired reports whether the JWT in a credentials file is no longer good by our
// clock: a server tells no stranger why it refuses.
func credsExpired(file string) bool {
	raw, err := os.ReadFile(file) //nolint:gosec // the path is the operator's
	if err != nil {
		return false
	}
	for word := range strings.FieldsSeq(string(raw)) {
		parts := strings.Split(word, ".")
		if len(parts) != 3 {
			continue
		}
		var claims struct {
			Expires int64 `json:"exp"`
		}
		body, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err == nil && json.Unmarshal(body, &claims) == nil {
			return claims.Expires > 0 && time.Now().Unix() >= claims.Expires
		}
	}
	return false
}

func containsAny(err error, words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(err.Error(), w) })
}

func orSystem(file string) string {
	if file == "" {
		return "the system's list"
	}
	return file
}

// loginHint explains a refused login by what was tried.
func loginHint(err error, cfg Config) string {
	switch {
	case cfg.CredsFile != "" && (errors.Is(err, nats.ErrAuthExpired) || credsExpired(cfg.CredsFile)):
		return "the credentials in " + cfg.CredsFile + " have expired: make new ones (nsc generate creds)"
	case cfg.CredsFile != "":
		return "the server does not accept the credentials in " + cfg.CredsFile + ": its account or user is unknown there, or revoked (rpc.credentials_file)"
	case cfg.NKeyFile != "":
		return "the server does not know the NKey in " + cfg.NKeyFile + " (rpc.nkey_file): put its public part (nk -inkey FILE -pubout) into the server's users; compute-agent nats-permissions prints the entry"
	case cfg.TLSCertFile != "":
		return "the server has no user for the subject of " + cfg.TLSCertFile + " (verify_and_map); compute-agent nats-permissions HOST --user SUBJECT prints the entry"
	}
	return "the server wants to know who this is: set rpc.nkey_file, rpc.credentials_file, or rpc.tls_cert and rpc.tls_key; compute-agent nats-permissions prints what it has to allow them"
}
