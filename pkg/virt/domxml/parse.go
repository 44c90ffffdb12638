package domxml

import (
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Info is what the drivers read from a domain's XML.
type Info struct {
	UUID      string
	Name      string // the instance's for a domain of ours, else libvirt's
	VCPUs     int
	MemoryMiB int
	Owned     bool // carries our metadata, for this very UUID
	Metadata  Metadata
	Disks     []DiskInfo
}

// DiskInfo is one disk of a domain.
type DiskInfo struct {
	Target   string // e.g. vda
	Source   string // the file, empty if it isn't one
	Backed   bool   // a copy-on-write overlay
	ReadOnly bool
	Direct   bool // opened without the host's page cache
}

// Parse reads a domain's XML as libvirt gives it.
func Parse(xml string) (Info, error) {
	_, root, err := domainOf(xml)
	if err != nil {
		return Info{}, err
	}
	info := Info{UUID: text(root, "uuid"), Name: text(root, "name")}
	if info.VCPUs, err = strconv.Atoi(text(root, "vcpu")); err != nil {
		return Info{}, fault.WrapAs(fault.Internal, err, "parse_domain_xml", info.UUID)
	}
	if info.MemoryMiB, err = mebibytes(root.SelectElement("memory")); err != nil {
		return Info{}, fault.WrapAs(fault.Internal, err, "parse_domain_xml", info.UUID)
	}
	for _, d := range root.FindElements("devices/disk") {
		info.Disks = append(info.Disks, readDisk(d))
	}
	e := find(root)
	if e == nil {
		return info, nil
	}
	m, ok := readMetadata(e)
	if info.Owned = ok && m.Instance == info.UUID; info.Owned {
		info.Metadata = m
		if m.Name != "" {
			info.Name = m.Name
		}
	}
	return info, nil
}

func readDisk(d *etree.Element) DiskInfo {
	out := DiskInfo{ReadOnly: d.SelectElement("readonly") != nil}
	if dr := d.SelectElement("driver"); dr != nil {
		cache := dr.SelectAttrValue("cache", "")
		out.Direct = cache == "none" || cache == "directsync"
	}
	if t := d.SelectElement("target"); t != nil {
		out.Target = t.SelectAttrValue("dev", "")
	}
	if s := d.SelectElement("source"); s != nil {
		out.Source = s.SelectAttrValue("file", "")
	}
	if b := d.SelectElement("backingStore"); b != nil {
		out.Backed = b.SelectElement("source") != nil
	}
	return out
}

func text(e *etree.Element, tag string) string {
	if c := e.SelectElement(tag); c != nil {
		return strings.TrimSpace(c.Text())
	}
	return ""
}

// mebibytes reads a memory element; libvirt itself always writes KiB.
func mebibytes(e *etree.Element) (int, error) {
	if e == nil {
		return 0, nil
	}
	n, err := strconv.ParseUint(strings.TrimSpace(e.Text()), 10, 63)
	if err != nil {
		return 0, err
	}
	shift := map[string]uint{"b": 0, "bytes": 0, "KiB": 10, "k": 10, "MiB": 20, "M": 20, "GiB": 30, "G": 30}
	unit := e.SelectAttrValue("unit", "KiB")
	s, ok := shift[unit]
	if !ok {
		return 0, fault.Newf(fault.Internal, "", "", "memory unit %q is unknown", unit)
	}
	return int(n << s >> 20), nil
}

// FindInterface gives the element of the interface with this MAC, in lower case, as
// it stands in a domain's XML; "" if the domain has none.
func FindInterface(xml, mac string) (string, error) {
	_, root, err := domainOf(xml)
	if err != nil {
		return "", err
	}
	for _, nic := range root.FindElements("devices/interface") {
		if m := nic.SelectElement("mac"); m == nil || !strings.EqualFold(m.SelectAttrValue("address", ""), mac) {
			continue
		}
		doc := etree.NewDocument()
		doc.SetRoot(nic.Copy())
		return doc.WriteToString()
	}
	return "", nil
}
