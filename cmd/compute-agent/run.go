package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/internal/collector"
	"github.com/compute-agent/compute-agent/internal/compose"
	"github.com/compute-agent/compute-agent/internal/config"
	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/sdnotify"
	"github.com/compute-agent/compute-agent/pkg/agent"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/embedded"
	"github.com/compute-agent/compute-agent/pkg/simulate"
	"github.com/compute-agent/compute-agent/pkg/vif"
	"github.com/compute-agent/compute-agent/pkg/virt/fake"
	"github.com/compute-agent/compute-agent/pkg/virt/libvirt"
)

// statusInterval is how often the service manager hears the status line.
const statusInterval = 10 * time.Second

// The pauses between two tries to reach the bus at a start.
const (
	busRetryFirst = 200 * time.Millisecond
	busRetryLimit = 5 * time.Second
)

/*
runAgent runs the agent that c describes until ctx ends, which is a clean stop:

	bus (embedded: its server first) ─▶ driver ─▶ node ─▶ READY ─▶ … ─▶ STOPPING
	                                                               node ◀─ driver ◀─ bus

Only this file and pkg/simulate name a driver.
*/
func runAgent(ctx context.Context, c config.Config) (err error) {
	ctx = compose.Logging(ctx)
	defer collector.Start()()
	if c.Agent.Host == "" {
		if c.Agent.Host, err = os.Hostname(); err != nil {
			return fault.WrapAs(fault.Internal, err, "run", "agent.host")
		}
	}
	d, closeBus, err := openBus(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBus()) }()
	return runOn(ctx, c, d)
}

// runOn runs the agent with a bus that it dials. The stop must not end what is being
// stopped, so everything below outlives ctx; but a start is given up with it.
func runOn(ctx context.Context, c config.Config, d dialer) (err error) {
	start := startLibvirt
	if c.Agent.Driver == "fake" {
		start = startFake
	}
	life := context.WithoutCancel(ctx)
	starting, giveUp := context.WithCancel(life)
	defer giveUp()
	started := context.AfterFunc(ctx, giveUp)
	s, err := start(starting, c, d)
	started()
	if err != nil && ctx.Err() != nil {
		logkit.From(ctx).Info("stopped before the start was over", logkit.Err(err))
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop(life)) }()
	if err := sdnotify.Ready(); err != nil {
		logkit.From(ctx).Warn("the service manager was not told", logkit.Err(err))
	}
	keepTelling(ctx, s.status)
	<-ctx.Done()
	_ = sdnotify.Stopping()
	logkit.From(ctx).Info("stopping; guests and migrations go on")
	return nil
}

// service is what runs: how to stop it and what to say of it.
type service struct {
	stop   func(context.Context) error
	status func() string
}

// dialer connects one host to the bus.
type dialer func(ctx context.Context, host string) (rpc.Transport, error)

// openBus gives a way to reach the bus; with rpc.url = embedded it starts the server.
func openBus(ctx context.Context, c config.Config) (dialer, func() error, error) {
	urls, inside := c.RPC.Servers()
	cfg := busConfig(c.RPC, urls)
	if !inside {
		return dialAs(cfg, c.RPC.StartWait), func() error { return nil }, nil
	}
	log := logkit.From(ctx)
	server, err := embedded.Start(ctx, embedded.Config{
		StoreDir: filepath.Join(c.Agent.StateDir, "nats"), Listen: c.RPC.Listen,
		Log: func(level, text string) { log.Warn(text, logkit.Key("nats").Of(level)) },
	})
	if err != nil {
		return nil, nil, err
	}
	cfg.InProcess, cfg.AutoSetup, cfg.Batches = server, true, rpc.BatchesOn
	return dialAs(cfg, c.RPC.StartWait), func() error { server.Shutdown(); return nil }, nil
}

// dialAs connects hosts; a bus that is not there yet is waited for, for so long or until
// the context ends.
func dialAs(cfg rpc.Config, patience time.Duration) dialer {
	return func(ctx context.Context, host string) (rpc.Transport, error) {
		own := cfg
		own.Name = host
		own.InboxPrefix = rpc.InboxOf(host)
		log := logkit.From(ctx)
		own.OnError = (&busReports{log: log, said: map[string]time.Time{}}).say
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		bus, err := green.RetryCall(ctx, green.Retry{
			Max: -1, First: busRetryFirst, Limit: busRetryLimit, Jitter: 0.2, Retryable: fault.Retryable,
			OnRetry: func(_ int, err error, sleep time.Duration) {
				log.Warn("the bus does not answer, trying again", logkit.Err(err), logkit.Key("pause").Of(sleep))
			},
		}, func(ctx context.Context) (rpc.Transport, error) { return rpc.Dial(ctx, own) })
		if errors.Is(err, green.ErrWaitGivenUp) {
			err = fault.Newf(fault.Unavailable, "run", "rpc.url", "NATS did not answer within rpc.start_wait, %s", patience).Because(err).
				WithHint("is it running at %s? --rpc-url embedded starts one inside the agent", strings.Join(cfg.URLs, ", "))
		}
		return bus, err
	}
}

// busConfig maps the section rpc.
func busConfig(r config.RPC, urls []string) rpc.Config {
	return rpc.Config{
		URLs: urls, Prefix: r.Prefix, CredsFile: r.Credentials, NKeyFile: r.NKey,
		TLSCAFile: r.TLSCA, TLSCertFile: r.TLSCert, TLSKeyFile: r.TLSKey,
		ConnectTimeout: r.ConnectTimeout, CallTimeout: r.CallTimeout, AckWait: r.AckWait,
		ReconnectLimit: r.ReconnectLimit, PingInterval: r.PingInterval, PublishTimeout: r.PublishTimeout,
		ConflictTimeout: r.ConflictTimeout, Heartbeat: r.Heartbeat,
		MaxAge: r.CastsMaxAge, EventsMaxAge: r.EventsMaxAge, Replicas: r.Replicas, Batches: rpc.Batches(r.Batches),
		AutoSetup: !identified(r, urls),
	}
}

// What the bus reports is said again when it is still reported after reportAgain; that many
// sentences are remembered.
const (
	reportAgain = time.Hour
	reportsKept = 100
)

// busReports says what the bus reports beside calls. A right that is missing is reported at
// each try: what was said within reportAgain is told at debug.
type busReports struct {
	log  *logkit.Logger
	mu   sync.Mutex
	said map[string]time.Time // when, by sentence
}

func (r *busReports) say(err error) {
	const message = "the bus reports"
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, said := r.said[err.Error()]; said && time.Since(last) < reportAgain {
		r.log.Debug(message, logkit.Err(err))
		return
	}
	if len(r.said) >= reportsKept {
		clear(r.said)
	}
	r.said[err.Error()] = time.Now()
	r.log.Warn(message, logkit.Err(err))
}

// identified reports whether somebody logs in. A host's credential has no right to
// make streams, and must not need it; where nobody is asked who they are, an agent
// makes what is missing itself.
func identified(r config.RPC, urls []string) bool {
	return r.Credentials != "" || r.NKey != "" || r.TLSCert != "" ||
		slices.ContainsFunc(urls, func(u string) bool { return strings.Contains(u, "@") })
}

// startLibvirt starts the agent of this machine; ctx ends the start and nothing after it.
func startLibvirt(ctx context.Context, c config.Config, dial dialer) (service, error) {
	bus, err := dial(ctx, c.Agent.Host)
	if err != nil {
		return service{}, err
	}
	log, cfg := logkit.From(ctx), libvirtConfig(c.Libvirt)
	cfg.Log = func(_ context.Context, msg string, err error) { log.Warn(msg, logkit.Err(err)) }
	driver, err := libvirt.Open(ctx, cfg)
	if err != nil {
		return service{}, errors.Join(err, bus.Close())
	}
	own := compose.Config{Agent: c.ForAgent(), State: c.ForState(), VIF: c.ForVIF(), Network: vif.Linux()}
	own.Agent.MachineID = machineID()
	node, err := compose.New(ctx, own, driver, bus)
	if err == nil {
		err = node.Start(ctx)
	}
	if err != nil {
		return service{}, errors.Join(err, driver.Close(), bus.Close())
	}
	return service{
		stop:   func(ctx context.Context) error { return errors.Join(node.Stop(ctx), driver.Close(), bus.Close()) },
		status: node.Agent.Status,
	}, nil
}

// libvirtConfig maps the section libvirt.
func libvirtConfig(l config.Libvirt) libvirt.Config {
	return libvirt.Config{
		SocketPath: l.Socket, URI: l.URI, InstancesPath: l.InstancesPath, VirtType: l.VirtType, Machine: l.Machine, CPUModel: l.CPUModel,
		LiveMigrationURI: l.LiveMigrationURI, InboundAddr: l.InboundAddr, NativeTLS: l.NativeTLS, TLSDir: l.TLSDir,
		CallTimeout: l.CallTimeout, ConnectTimeout: l.ConnectTimeout, CallsPerConnection: l.CallsPerConnection, MaxMigrations: l.MaxMigrations,
		StartTimeout: l.StartTimeout, DestroyTimeout: l.DestroyTimeout, SaveTimeout: l.SaveTimeout, MigrateTimeout: l.MigrateTimeout,
		DetachTimeout: l.DetachTimeout, DetachAttempts: l.DetachAttempts, FilesTimeout: l.FilesTimeout, QemuImg: l.QemuImg,
		PingInterval: l.PingInterval, ReconnectFirst: l.ReconnectFirst, ReconnectLimit: l.ReconnectLimit, EventBacklog: l.EventBacklog,
	}
}

// startFake starts one or many simulated hosts; ctx ends the start and nothing after it.
func startFake(ctx context.Context, c config.Config, dial dialer) (service, error) {
	names := simulate.Names(c.Agent.Host, c.Fake.Hosts)
	machine := fake.Config{
		VCPUs: c.Fake.VCPUs, MemoryMiB: c.Fake.MemoryMiB, DiskGiB: c.Fake.DiskGiB,
		BandwidthMiB: uint64(max(c.Fake.BandwidthMiB, 0)),
	}
	if len(names) == 1 { // of many, guests move within this process
		machine.Listen = c.Fake.Listen
	}
	node := compose.Config{Agent: c.ForAgent(), State: c.ForState(), VIF: c.ForVIF()}
	fleet, err := simulate.New(context.WithoutCancel(ctx), simulate.Config{
		Hosts: names, StateDir: c.Agent.StateDir, Dial: dial, Fake: machine, Node: node, Keep: true,
	})
	if err == nil {
		err = fleet.Start(ctx)
	}
	if err != nil {
		return service{}, err
	}
	return service{stop: fleet.Stop, status: fleet.Host(names[0]).Status}, nil
}

// machineID tells this machine from others with its host name: systemd's machine id,
// or the kernel's boot id where there is none.
func machineID() string {
	for _, path := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/random/boot_id"} {
		if raw, err := os.ReadFile(path); err == nil && len(bytes.TrimSpace(raw)) > 0 { //nolint:gosec // the list above
			return string(bytes.TrimSpace(raw))
		}
	}
	return "unknown"
}

// keepTelling gives the service manager the status line and the sign of life that
// it asks for. A hypervisor that hangs does not stop either: only a stuck agent does.
func keepTelling(ctx context.Context, status func() string) {
	every := statusInterval
	if w, err := sdnotify.WatchdogInterval(); err == nil && w > 0 {
		every = min(every, w/2)
	}
	loop := green.NewFixedIntervalLoopingCall[struct{}](func(context.Context) error {
		return errors.Join(sdnotify.Status(status()), sdnotify.Watchdog())
	})
	if err := loop.Start(ctx, every, green.ContinueOnError()); err != nil {
		logkit.From(ctx).Warn("the service manager is not told how the agent is", logkit.Err(err))
	}
}

var _ agent.Hypervisor = (*libvirt.Driver)(nil)
