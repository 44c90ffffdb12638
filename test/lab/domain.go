package lab

import (
	"encoding/xml"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Domain describes a guest that is defined by virsh, not by an agent: the measure that an agent's guests are compared with.
type Domain struct {
	Name      string
	Tap       string       // made before on every host the guest runs on; libvirt leaves it alone
	Address   netip.Prefix // the guest's own address on the data network
	MemoryMiB int          // 0 means 128
	Options   []string     // more words for the kernel command line, such as ca.dirty=20
}

// Cmdline is the kernel command line of a guest with that address; options are those of guest/init.
func (g Guest) Cmdline(address netip.Prefix, options ...string) string {
	words := append([]string{"console=ttyS0", "quiet", "panic=-1", "ca.ip=" + address.String()}, options...)
	return strings.Join(words, " ")
}

// MAC is the hardware address that a domain with this address gets: 52:54:00 and the last three octets.
func MAC(address netip.Addr) string {
	octets := address.As4()
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", octets[1], octets[2], octets[3])
}

// ConsolePath is where, inside the host it runs on, the serial console of a domain is written.
func (d Domain) ConsolePath() string { return "/var/log/libvirt/console-" + d.Name + ".log" }

// XML returns the domain for virsh define: plain emulation (TCG), the newest q35 machine (libvirt writes down which) and a CPU model that every
// host can emulate, so that it migrates anywhere.
func (d Domain) XML(guest Guest) string {
	if d.MemoryMiB == 0 {
		d.MemoryMiB = 128
	}
	return fmt.Sprintf(domainXML, escape(d.Name), d.MemoryMiB, escape(guest.Kernel), escape(guest.Initrd),
		escape(guest.Cmdline(d.Address, d.Options...)), MAC(d.Address.Addr()), escape(d.Tap), escape(d.ConsolePath()))
}

const domainXML = `<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>%d</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>%s</kernel>
    <initrd>%s</initrd>
    <cmdline>%s</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <interface type='ethernet'>
      <mac address='%s'/>
      <target dev='%s' managed='no'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'><source path='%s'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
`

// escape makes a text safe between tags and inside an attribute.
func escape(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a Builder takes everything
	return b.String()
}

// AddressOf is the address of the guest with a hardware address of [MAC].
func AddressOf(mac string) (a netip.Addr) {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 {
		return a
	}
	return netip.AddrFrom4([4]byte{labPrefix.Addr().As4()[0], hw[3], hw[4], hw[5]})
}
