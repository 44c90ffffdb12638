package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
)

// labPrefix holds both networks of the lab.
var labPrefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, 0}), 23)

const (
	prefix   = "ca-lab-"        // starts the name of every namespace of the lab and of every link it has in the root namespace
	switches = prefix + "net"   // the namespace with the two bridges and NATS
	natsAddr = "10.77.0.1"      // the management bridge
	rootMgmt = "10.77.0.254/24" // the tester on the management network
	rootData = "10.77.1.254/24" // the tester on the data network, where the guests are
	dataLink = "data0"          // a host's link to the data bridge
	mgmtLink = "mgmt0"          // a host's link to the management bridge
	bridge   = "br-int0"        // a host's integration bridge
	bridgeUp = "stp_state 0 forward_delay 0 mcast_snooping 0"
)

// quietNamespace turns off what would disturb measurements and guests in a network namespace: IPv6 (its router
// solicitations and duplicate address detection) and the filtering of bridged packets by iptables, which drops them where
// a firewall forbids forwarding. Keys that this kernel does not have are passed over.
const quietNamespace = `
for key in net/ipv6/conf/all/disable_ipv6=1 net/ipv6/conf/default/disable_ipv6=1 \
	net/bridge/bridge-nf-call-iptables=0 net/bridge/bridge-nf-call-ip6tables=0 net/bridge/bridge-nf-call-arptables=0; do
	if [ -e "/proc/sys/${key%=*}" ]; then echo "${key#*=}" >"/proc/sys/${key%=*}"; fi
done`

// buildNetwork makes the namespaces and the links between them as the package comment draws them.
func buildNetwork(ctx context.Context, hosts []*Host) error {
	names := []string{switches}
	for _, h := range hosts {
		names = append(names, h.netns)
	}
	for _, name := range names {
		if err := ip(ctx, "", "netns add "+name); err != nil {
			return err
		}
		if _, err := run(exec.CommandContext(ctx, "nsenter", "--net="+netnsFile(name), "sh", "-euc", quietNamespace), ""); err != nil {
			return err
		}
	}
	if err := buildSwitches(ctx, hosts); err != nil {
		return err
	}
	for _, h := range hosts {
		if err := ip(ctx, h.netns, hostScript(h)); err != nil {
			return err
		}
	}
	return nil
}

// buildSwitches makes every veth pair and the two bridges that join them.
func buildSwitches(ctx context.Context, hosts []*Host) error {
	var pairs, ports strings.Builder
	fmt.Fprintf(&ports, "link set lo up\nlink add mgmt type bridge %s\nlink add data type bridge %s\n", bridgeUp, bridgeUp)
	fmt.Fprintf(&ports, "address add %s/24 dev mgmt\nlink set mgmt up\nlink set data up\n", natsAddr)
	for _, network := range []string{"mgmt", "data"} {
		fmt.Fprintf(&pairs, "link add %s%s type veth peer name root-%s netns %s\n", prefix, network, network, switches)
		fmt.Fprintf(&ports, "link set root-%s master %s up\n", network, network)
		for _, h := range hosts {
			fmt.Fprintf(&pairs, "link add %s0 netns %s type veth peer name %s-%s netns %s\n", network, h.netns, h.Name, network, switches)
			fmt.Fprintf(&ports, "link set %s-%s master %s up\n", h.Name, network, network)
		}
	}
	if err := ip(ctx, "", pairs.String()); err != nil {
		return err
	}
	if err := ip(ctx, switches, ports.String()); err != nil {
		return err
	}
	return ip(ctx, "", fmt.Sprintf("link set %[1]smgmt addrgenmode none up\nlink set %[1]sdata addrgenmode none up\n"+
		"address add %[2]s dev %[1]smgmt\naddress add %[3]s dev %[1]sdata\n", prefix, rootMgmt, rootData))
}

// hostScript returns what is set up inside one host: its management address and its integration bridge.
func hostScript(h *Host) string {
	return fmt.Sprintf("link set lo up\naddress add %s/24 dev %s\nlink set %s up\n", h.Address, mgmtLink, mgmtLink) +
		fmt.Sprintf("link add %s type bridge %s\nlink set %s up\nlink set %s master %s up\n", bridge, bridgeUp, bridge, dataLink, bridge)
}

// checkAddresses returns an error when the machine itself uses addresses of the lab.
func checkAddresses() error {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("cannot list this machine's addresses: %w", err)
	}
	for _, address := range addresses {
		used, err := netip.ParsePrefix(address.String())
		if err == nil && used.Overlaps(labPrefix) {
			return fmt.Errorf("this machine has the address %s, and the lab needs all of %s", used, labPrefix)
		}
	}
	return nil
}

// netnsFile is where ip(8) keeps a named network namespace.
func netnsFile(name string) string { return "/run/netns/" + name }
