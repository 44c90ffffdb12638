package archtest

// floors says on which floor each package stands: a package imports only from strictly lower floors. Packages that don't
// exist yet may stand here.
var floors = map[string]int{
	"cmd/compute-agent": 60,
	"internal/docgen":   56,
	"internal/config":   55,
	"pkg/simulate":      50,
	"internal/compose":  48,
	"pkg/controller":    45,

	"pkg/controller/controllertest": 46,
	"pkg/agent":                     40,

	"pkg/migration": 30,
	"pkg/reboot":    30,
	"pkg/vif":       30,
	"pkg/reconcile": 30,
	"pkg/inventory": 30,

	"pkg/virt/libvirt":  22,
	"pkg/virt/fake":     22,
	"pkg/virt/domxml":   21,
	"pkg/virt/virttest": 21,
	"pkg/virt":          20,

	"pkg/rpc/rpctest":  11,
	"pkg/rpc/embedded": 11,
	"pkg/rpc":          10,
	"pkg/state":        10,
	"pkg/rpc/api":      8,

	"pkg/green":    5,
	"pkg/instance": 5,

	"internal/jsonkit/jsontest": 1,
	"internal/logkit/logtest":   1,
	"pkg/fault":                 0,
	"internal/archtest":         0,
	"internal/collector":        0,
	"internal/jsonkit":          0,
	"internal/logkit":           0,
	"internal/near":             0,
	"internal/sdnotify":         0,
	"internal/version":          0,
}

// outside is the tree that has no floors and no doors; nothing of the house may import it.
const outside = "test/"

// greenRoom is the only package that starts goroutines.
const greenRoom = "pkg/green"

// drivers are the packages that only the places of driverUsers may name, which hand them to internal/compose.
var drivers = []string{"pkg/virt/libvirt", "pkg/virt/fake"}

// driverUsers are files or whole packages.
var driverUsers = []string{"cmd/compute-agent/run.go", "pkg/simulate"}

// door says which packages may import a library.
type door struct {
	library string   // an import path; what is below it is meant too, and so is a major version after it
	rooms   []string // the packages that may; "x/..." means x and all below it, "...test" all whose name ends so
	instead string   // what everybody else does
}

var doors = []door{
	{"github.com/digitalocean/go-libvirt", []string{"pkg/virt/libvirt"}, "speak the language of pkg/virt"},
	{"github.com/nats-io", []string{"pkg/rpc/..."}, "use the transport of pkg/rpc"},
	{"github.com/spf13/cobra", []string{"cmd/compute-agent"}, "take plain arguments; commands live in cmd/compute-agent"},
	{"github.com/spf13/pflag", []string{"cmd/compute-agent", "internal/config"}, "take a Config"},
	{"github.com/sirupsen/logrus", []string{"internal/logkit"}, "log through logkit.From(ctx)"},
	{"go.etcd.io/bbolt", []string{"pkg/state"}, "use the journal of pkg/state"},
	{"github.com/vishvananda/netlink", []string{"pkg/vif"}, "ask pkg/vif through an interface of your own"},
	{"github.com/vishvananda/netns", []string{"pkg/vif"}, "ask pkg/vif through an interface of your own"},
	{"libvirt.org/go/libvirtxml", []string{"pkg/virt/domxml", "pkg/virt/libvirt"}, "use pkg/virt/domxml"},
	{"github.com/beevik/etree", []string{"pkg/virt/domxml", "pkg/virt/libvirt"}, "use pkg/virt/domxml"},
	{"github.com/knadh/koanf", []string{"internal/config"}, "take a Config; internal/config fills it"},
	{"github.com/pelletier/go-toml", []string{"internal/config"}, "take a Config; internal/config fills it"},
	{"github.com/vbauerster/mpb", []string{"cmd/compute-agent"}, "report progress as data; bars are drawn in cmd/compute-agent"},
	{"github.com/coreos/go-systemd", []string{"internal/sdnotify"}, "use internal/sdnotify"},
	{"testing", []string{"...test"}, "put test helpers into a package whose name ends in \"test\", so that the binary goes without them"},
	{"C", nil, "stay in pure Go: the binary is static"},
}

// exemption lets one file break one rule.
type exemption struct{ rule, file, reason string }

var exemptions = []exemption{}

// Limits in lines. Tests may be longer: their tables are data.
const (
	maxFuncLines     = 60
	maxFileLines     = 500
	maxTestFuncLines = 120
	maxTestFileLines = 1000
)
