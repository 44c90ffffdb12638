package libvirt

import (
	"errors"
	"strings"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
	"github.com/compute-agent/compute-agent/pkg/virt/domxml"
)

const procDetach = 161

// portGuest puts a running, persistent domain with one port into the daemon.
func (r rig) portGuest(t *testing.T) (id uuid.UUID, p instance.Port) {
	t.Helper()
	id = uuid.New()
	p = instance.Port{ID: uuid.NewString(), MAC: "52:54:00:AB:CD:01", Binding: instance.BindingTap}
	def := virt.Definition{Spec: instance.Spec{UUID: id.String(), VCPUs: 1, MemoryMiB: 128, Ports: []instance.Port{p}}}
	xml, err := domxml.Build(def, domxml.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	r.set(func(d *daemon) {
		d.domains[id] = xml
		d.script[procIsPersistent] = func(*daemonConn, []byte) ([]byte, error) { return xdr(1), nil }
	})
	return id, p
}

func TestDetachAsksAgainAndGivesUp(t *testing.T) {
	few := func(_ *daemon, c *Config) { c.DetachAttempts, c.DetachTimeout = 3, 20*time.Second }
	withRig(t, few, func(t *testing.T, r rig) {
		id, p := r.portGuest(t)
		asked := 0
		r.set(func(d *daemon) {
			d.script[procDetach] = func(_ *daemonConn, args []byte) ([]byte, error) {
				if args[len(args)-1] != byte(golibvirt.DomainDeviceModifyLive) {
					return nil, nil
				}
				if asked++; asked > 1 {
					return nil, golibvirt.Error{Code: 1, Message: "device net0 is already in the process of unplug"}
				}
				return nil, nil
			}
		})
		began := time.Now()
		err := r.d.DetachPort(t.Context(), id.String(), p)
		wantKind(t, "DetachPort of a guest that holds on", err, fault.Timeout)
		if took := time.Since(began); took < time.Minute || took > time.Minute+time.Second || asked != 3 {
			t.Errorf("asked %d times in %s, want three times 20s", asked, took)
		}
		if fault.HintOf(err) == "" || !strings.Contains(err.Error(), p.MAC) {
			t.Errorf("%v: want the MAC and a hint", err)
		}
	})
}

func TestDetachEndsWhenTheGuestLetsGo(t *testing.T) {
	withRig(t, nil, func(t *testing.T, r rig) {
		id, p := r.portGuest(t)
		r.set(func(d *daemon) {
			d.script[procDetach] = func(c *daemonConn, args []byte) ([]byte, error) {
				if args[len(args)-1] == byte(golibvirt.DomainDeviceModifyLive) {
					time.AfterFunc(2*time.Second, func() {
						c.d.set(func(d *daemon) {
							d.domains[id] = strings.ReplaceAll(d.domains[id], "52:54:00:ab:cd:01", "52:54:00:ab:cd:02")
						})
					})
				}
				return nil, nil
			}
		})
		began := time.Now()
		if err := r.d.DetachPort(t.Context(), id.String(), p); err != nil {
			t.Errorf("DetachPort: %v", err)
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("it took %s, want what the guest took: 2s", took)
		}
		if err := r.d.DetachPort(t.Context(), id.String(), p); err != nil {
			t.Errorf("DetachPort of a port that is gone: %v", err)
		}
	})
}

func TestPostCopyOverTLSNeedsANewQEMU(t *testing.T) {
	const procVersion = 4
	tls := func(_ *daemon, c *Config) { c.NativeTLS = true }
	for version, want := range map[uint64]fault.Kind{7_002_000: fault.PreconditionFailed, 10_001_000: ""} {
		withRig(t, tls, func(t *testing.T, r rig) {
			req := r.guest(t)
			req.PostCopy = true
			sent := false
			r.set(func(d *daemon) {
				d.script[procVersion] = func(*daemonConn, []byte) ([]byte, error) { return xdr(version), nil }
				d.script[procPerform] = func(_ *daemonConn, args []byte) ([]byte, error) {
					_, params, flags := readPerform(t, args)
					sent = flags&golibvirt.MigrateTLS != 0 && params.text("tls.destination") == "h2"
					return xdr(0), nil
				}
			})
			err := r.d.Migrate(t.Context(), req)
			wantKind(t, "post-copy over TLS", err, want)
			if sent != (want == "") {
				t.Errorf("QEMU %d: a perform with TLS was sent: %t", version, sent)
			}
			if want != "" && !errors.Is(err, fault.PreconditionFailed) {
				t.Errorf("QEMU %d: %v", version, err)
			}
		})
	}
}
