package lab_test

import (
	"encoding/xml"
	"net/netip"
	"testing"

	"github.com/compute-agent/compute-agent/test/lab"
)

func TestDomainXML(t *testing.T) {
	d := lab.Domain{
		Name:    "a<b'&",
		Tap:     "tap1",
		Address: netip.MustParsePrefix("10.77.1.9/24"),
		Options: []string{"ca.dirty=3", "x='1'"},
	}
	guest := lab.Guest{Kernel: "/k'", Initrd: "/i"}
	var got struct {
		Name   string `xml:"name"`
		Memory int    `xml:"memory"`
		OS     struct {
			Kernel  string `xml:"kernel"`
			Cmdline string `xml:"cmdline"`
		} `xml:"os"`
		Interface struct {
			MAC struct {
				Address string `xml:"address,attr"`
			} `xml:"mac"`
			Target struct {
				Dev     string `xml:"dev,attr"`
				Managed string `xml:"managed,attr"`
			} `xml:"target"`
		} `xml:"devices>interface"`
	}
	if err := xml.Unmarshal([]byte(d.XML(guest)), &got); err != nil {
		t.Fatal(err)
	}
	if got.Name != d.Name || got.OS.Kernel != guest.Kernel || got.Memory != 128 {
		t.Errorf("name %q, kernel %q, %d MiB; want %q, %q, 128", got.Name, got.OS.Kernel, got.Memory, d.Name, guest.Kernel)
	}
	if want := "console=ttyS0 quiet panic=-1 ca.ip=10.77.1.9/24 ca.dirty=3 x='1'"; got.OS.Cmdline != want {
		t.Errorf("cmdline = %q, want %q", got.OS.Cmdline, want)
	}
	if got.Interface.MAC.Address != "52:54:00:4d:01:09" || got.Interface.Target.Dev != "tap1" || got.Interface.Target.Managed != "no" {
		t.Errorf("interface = %+v, want mac 52:54:00:4d:01:09 on tap1, not managed", got.Interface)
	}
}
