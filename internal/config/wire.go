package config

import (
	"strings"

	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// Transport is how pkg/rpc connects with these options, as a client of that name.
// For the embedded server the caller adds InProcess.
func (r RPC) Transport(name string) rpc.Config {
	c := rpc.Config{
		Name: name, Prefix: r.Prefix, CredsFile: r.Credentials, NKeyFile: r.NKey,
		TLSCAFile: r.TLSCA, TLSCertFile: r.TLSCert, TLSKeyFile: r.TLSKey,
		ConnectTimeout: r.ConnectTimeout, CallTimeout: r.CallTimeout, AckWait: r.AckWait,
		Replicas: r.Replicas, MaxAge: r.CastsMaxAge, EventsMaxAge: r.EventsMaxAge,
	}
	if r.IsEmbedded() {
		c.AutoSetup = true
		return c
	}
	for url := range strings.SplitSeq(r.URL, ",") {
		c.URLs = append(c.URLs, strings.TrimSpace(url))
	}
	return c
}
