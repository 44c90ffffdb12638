package agent

import (
	"context"
	"sync"
	"time"

	"github.com/compute-agent/compute-agent/pkg/green"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/reboot"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// Config says who the agent is and how long it waits. A zero duration or count
// means its default.
type Config struct {
	Host      string // required: the name on the wire
	MachineID string // required: tells two machines with one host name apart
	StateDir  string // required: tells two agents of one machine apart; the journal lives there
	Driver    string // shown in the host's view: fake or libvirt

	ReportInterval    time.Duration // between two heartbeats; 10 s (nova's report_interval)
	ReconcileInterval time.Duration // between two inventories; 10 min (nova's sync_power_state_interval)
	ReviewInterval    time.Duration // between two looks at migrations of unknown outcome; 60 s
	StartWait         time.Duration // how long tasks wait for the first inventory after a start; 10 s
	BusWait           time.Duration // how long Start waits for a bus that went away after it was dialled; 60 s
	StopTimeout       time.Duration // how long Stop waits for tasks to notice; 5 s
	AckWait           time.Duration // the stream's redelivery time; a start waits up to three times as long; 5 s
	CastDefaultExpiry time.Duration // of casts that do not say; 24 h
	TaskRetention     time.Duration // how long ended tasks and migrations are remembered; 24 h
	JournalTimeout    time.Duration // one write that must not be lost, before it is said and tried again; 30 s
	LookTimeout       time.Duration // the look at an instance when its task ends; 10 s
	ArrivalWait       time.Duration // how long a migration or pause waits for the end of the guest's own arrival; 60 s
	PublishTimeout    time.Duration // up to 1,024 events, or 256 view entries, at once; 5 s
	CleanupTimeout    time.Duration // removing what a failed build left; 120 s
	ViewInterval      time.Duration // between two rounds of view writing; 200 ms
	RetryFirst        time.Duration // first pause after the bus or the journal failed; 100 ms
	RetryLimit        time.Duration // and the longest; 5 s
	MaxAcceptedTasks  int           // accepted and not ended; above it reading pauses; 10,000
	TasksKept         int           // ended tasks that are remembered at most; 100,000
	MigrationsKept    int           // and ended migrations; 10,000
	RepairWorkers     int           // instances repaired at the same time; 8

	// APIVersion is the version of the wire that it speaks; api.Version. Extra are calls
	// beyond the table. Both let a test run an agent of another version beside this one.
	APIVersion string
	Extra      map[string]func(ctx context.Context, args []byte) (reply []byte, err error)

	Inventory inventory.Config
	Migration migration.Config // its Host is set from Host
	Reboot    reboot.Config
}

// WithDefaults fills what was left open.
func (c Config) WithDefaults() Config {
	d := func(v *time.Duration, def time.Duration) {
		if *v <= 0 {
			*v = def
		}
	}
	d(&c.ReportInterval, 10*time.Second)
	d(&c.ReconcileInterval, 10*time.Minute)
	d(&c.ReviewInterval, time.Minute)
	d(&c.StartWait, 10*time.Second)
	d(&c.BusWait, 60*time.Second)
	d(&c.StopTimeout, 5*time.Second)
	d(&c.AckWait, 5*time.Second)
	d(&c.CastDefaultExpiry, 24*time.Hour)
	d(&c.TaskRetention, 24*time.Hour)
	d(&c.JournalTimeout, 30*time.Second)
	d(&c.LookTimeout, 10*time.Second)
	d(&c.ArrivalWait, 60*time.Second)
	d(&c.PublishTimeout, 5*time.Second)
	d(&c.CleanupTimeout, 120*time.Second)
	d(&c.ViewInterval, 200*time.Millisecond)
	d(&c.RetryFirst, 100*time.Millisecond)
	d(&c.RetryLimit, 5*time.Second)
	n := func(v *int, def int) {
		if *v <= 0 {
			*v = def
		}
	}
	n(&c.MaxAcceptedTasks, 10_000)
	n(&c.TasksKept, 100_000)
	n(&c.MigrationsKept, 10_000)
	n(&c.RepairWorkers, 8)
	if c.APIVersion == "" {
		c.APIVersion = api.Version
	}
	c.Inventory = c.Inventory.WithDefaults()
	c.Migration.Host = c.Host
	return c
}

// Agent is one host's manager. Make it with New, then Start, then Stop.
type Agent struct {
	cfg   Config
	hv    Hypervisor
	bus   Bus
	net   Network
	store *state.Store

	ledger    *ledger
	views     *viewSet
	progress  *progressBoard
	lanes     *lanes // instances
	asides    *lanes // what is told: it waits for no instance, but keeps its order
	waiters   waiters
	machine   machine
	looks     green.KeyedQueue[string, virt.Event] // domains to look at
	endpoints map[string]endpoint
	calls     *green.Crew // set by Start

	source     *migration.Source
	dest       *migration.Dest
	rebooter   *reboot.Rebooter
	reviewSoon chan struct{} // has room for one

	base    context.Context //nolint:containedctx // the context of everything the agent runs; ended by Stop
	cancel  context.CancelCauseFunc
	spawned sync.WaitGroup

	returns returns // casts of an earlier run, while the first tasks wait for them
	started time.Time
	taken   chan struct{}  // closed when the tasks of an earlier run are in their lanes
	close   []func() error // undone in reverse by Stop
}

// Ports are what the agent stands on. All are required; the caller closes them
// after Stop.
type Ports struct {
	Hypervisor Hypervisor
	Bus        Bus
	Network    Network
	Store      *state.Store
}

// New wires an agent. It does nothing yet.
func New(cfg Config, p Ports) *Agent {
	a := &Agent{
		cfg: cfg.WithDefaults(), hv: p.Hypervisor, bus: p.Bus, net: p.Network, store: p.Store,
		views: newViewSet(), lanes: newLanes(), asides: newLanes(), taken: make(chan struct{}), endpoints: endpoints(), machine: machine{seen: make(chan struct{})},
		reviewSoon: make(chan struct{}, 1),
	}
	a.progress = &progressBoard{views: a.views}
	a.ledger = newLedger(a.cfg.Host, a.cfg.TasksKept, p.Store, a.views)
	o := owner{a}
	a.source = migration.NewSource(a.cfg.Migration, migration.SourcePorts{
		Hypervisor: p.Hypervisor, Peer: peer{a}, Plugger: p.Network, Journal: o, Owner: o, Reporter: o,
	})
	a.dest = migration.NewDest(a.cfg.Migration, migration.DestPorts{
		Hypervisor: p.Hypervisor, Peer: peer{a}, Plugger: p.Network, Journal: o, Owner: o,
	})
	a.rebooter = reboot.New(a.cfg.Reboot, destroyer{p.Hypervisor, a}, p.Network)
	return a
}

var (
	_ migration.Owner    = owner{}
	_ migration.Journal  = owner{}
	_ migration.Reporter = owner{}
	_ migration.Peer     = peer{}
	_ Bus                = rpc.Transport(nil)
)
