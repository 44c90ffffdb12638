package main

import (
	"context"
	"io"
	"io/fs"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// An agent that is told to stop while the bus is away in the middle of its start ends at
// once, and does not wait as long as it would for the bus.
func TestStopDuringTheStart(t *testing.T) {
	for _, hosts := range []int{1, 40} { // the second time more than start side by side
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			c := config.Config{Agent: config.Agent{Host: "a", Driver: "fake", StateDir: dir}, Fake: config.Fake{Hosts: hosts}}
			bus := rpc.NewBus()
			dial := func(_ context.Context, host string) (rpc.Transport, error) {
				defer bus.Partition(host) // it is dialled, and not yet started
				return bus.Connect(host), nil
			}
			log, err := logkit.New(logkit.Options{Out: io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(compose.Logging(logkit.Into(t.Context(), log)))
			defer time.AfterFunc(3*time.Second, cancel).Stop()
			began := time.Now()
			err = runOn(ctx, c, dial)
			if took := time.Since(began); err != nil || took != 3*time.Second {
				t.Errorf("%d hosts: the end after %v, %v, want at the word, after 3 s", hosts, took, err)
			}
		})
	}
}

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
