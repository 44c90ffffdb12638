package main

import (
	"io/fs"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// The section rpc reaches every option of the transport, and says its defaults.
func TestBusConfig(t *testing.T) {
	l, err := config.Load(config.Sources{
		ReadAll: func(string) ([]byte, error) { return nil, fs.ErrNotExist },
		Flags: map[string]config.Flag{
			"rpc.replicas": {Value: "3"}, "rpc.tls_ca": {Value: "ca"}, "rpc.tls_cert": {Value: "cert"}, "rpc.tls_key": {Value: "key"}, "rpc.nkey_file": {Value: "nkey"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	urls, _ := l.RPC.Servers()
	got := busConfig(l.RPC, urls)
	want := rpc.Config{Replicas: 3, TLSCAFile: "ca", TLSCertFile: "cert", TLSKeyFile: "key", NKeyFile: "nkey"}.WithDefaults()
	want.OnError = nil
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-the transport's defaults +the section's):\n%s", d)
	}
	perHost := map[string]bool{"Name": true, "InboxPrefix": true, "InProcess": true, "OnError": true} // set by dialAs and openBus
	otherWay := map[string]bool{"CredsFile": true, "AutoSetup": true}                                 // not with an NKey
	for f, v := range reflect.ValueOf(got).Fields() {
		if v.IsZero() && !perHost[f.Name] && !otherWay[f.Name] {
			t.Errorf("%s can't be configured", f.Name)
		}
	}
}
