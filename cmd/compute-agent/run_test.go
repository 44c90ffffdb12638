package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/virt/libvirt"
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

// What the bus reports at each try is a warning once an hour.
func TestBusReportsAreSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, heard := logtest.Record(t)
		r := &busReports{log: log, said: map[string]time.Time{}}
		for range 361 { // an hour and the beat after it
			r.say(errors.New("no right to list"))
			<-time.After(10 * time.Second)
		}
		r.say(errors.New("a slow reader"))
		warnings := map[any]int{}
		for _, e := range heard.Entries() {
			if e.Level == "warning" {
				warnings[e.Fields[logkit.Error]]++
			}
		}
		if want := map[any]int{"no right to list": 2, "a slow reader": 1}; !cmp.Equal(want, warnings) {
			t.Errorf("warnings %v, want %v", warnings, want)
		}
		for i := range 10 * reportsKept { // each another one: they are not remembered for good
			r.say(fmt.Errorf("report %d", i))
		}
		if len(r.said) > reportsKept {
			t.Errorf("%d sentences are remembered, want %d at most", len(r.said), reportsKept)
		}
	})
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

// The section libvirt reaches every option of the driver, each its own one, and says its
// defaults.
func TestLibvirtConfig(t *testing.T) {
	l, err := config.Load(config.Sources{ReadAll: func(string) ([]byte, error) { return nil, fs.ErrNotExist }})
	if err != nil {
		t.Fatal(err)
	}
	section := reflect.ValueOf(&l.Libvirt).Elem()
	defaults, own := reflect.ValueOf(libvirtConfig(l.Libvirt)), reflect.ValueOf(libvirt.Config{}.WithDefaults())
	for i := range section.NumField() { // each gets a value that no other one has
		switch f := section.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(fmt.Sprint("text ", i))
		case reflect.Bool:
			f.SetBool(true)
		default:
			f.SetInt(int64(1000 + i))
		}
	}
	got := reflect.ValueOf(libvirtConfig(l.Libvirt))
	elsewhere := map[string]bool{"LocalInstancesPath": true, "Log": true, "dial": true} // for tests, startLibvirt's, for tests
	for f, value := range got.Fields() {
		if elsewhere[f.Name] {
			continue
		}
		option := section.FieldByName(strings.TrimSuffix(f.Name, "Path"))
		if !option.IsValid() {
			option = section.FieldByName(f.Name)
		}
		if !option.IsValid() || !option.Equal(value) {
			t.Errorf("%s is %v, which is not what the section says", f.Name, value)
		}
		if said, its := defaults.FieldByIndex(f.Index), own.FieldByIndex(f.Index); !said.Equal(its) {
			t.Errorf("the default of %s is %v, the driver's is %v", f.Name, said, its)
		}
	}
	if n := got.NumField() - len(elsewhere); n != section.NumField() {
		t.Errorf("%d options reach %d fields", section.NumField(), n)
	}
}
