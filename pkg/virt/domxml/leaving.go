package domxml

import (
	"fmt"

	"github.com/beevik/etree"
)

// bound are the devices that hang on the host they are on, and why (libvirt,
// qemuMigrationSrcIsAllowed; nova.md 1.3).
var bound = []struct{ path, what string }{
	{"devices/hostdev", "a device of the host is passed through"},
	{"devices/interface[@type='hostdev']", "an interface is a device of the host"},
	{"devices/interface[@type='direct']", "an interface is a macvtap on a link of the host"},
	{"devices/filesystem", "a folder of the host is shared with the guest"},
	{"devices/shmem", "it shares memory with others on the host"},
	{"devices/memory[@model='nvdimm']", "its memory is a file of the host"},
	{"devices/memory[@model='virtio-pmem']", "its memory is a file of the host"},
	{"devices/tpm/backend[@type='passthrough']", "the host's TPM is passed through"},
	{"devices/disk[@device='lun']", "a disk is a SCSI device of the host"},
}

// Leaving reads what a move depends on from the XML of a domain: the devices that can't
// move with it, each with its reason, and its CPU as libvirt describes it ("" without one).
func Leaving(xml string) (reasons []string, cpu string, err error) {
	_, root, err := domainOf(xml)
	if err != nil {
		return nil, "", err
	}
	for _, b := range bound {
		for _, e := range root.FindElements(b.path) {
			name := e.Tag
			if alias := e.FindElement("alias"); alias != nil {
				name = alias.SelectAttrValue("name", name)
			}
			reasons = append(reasons, fmt.Sprintf("device %s can't move: %s", name, b.what))
		}
	}
	if e := root.SelectElement("cpu"); e != nil {
		doc := etree.NewDocument()
		doc.SetRoot(e.Copy())
		cpu, err = doc.WriteToString()
	}
	return reasons, cpu, err
}
