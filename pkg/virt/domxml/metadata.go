package domxml

import (
	"strconv"

	"github.com/beevik/etree"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Metadata marks a domain as ours. It travels inside the domain's XML, so it
// arrives with a migrated guest.
type Metadata struct {
	Instance   string // the instance's UUID; a copy of the XML under another UUID is not ours
	Name       string // the instance's name
	Generation uint64 // of two domains of one instance the higher one is the owner
	Migration  string // the migration that brought it here, if any
}

// XML is the metadata element as libvirt stores it.
func (m Metadata) XML() (string, error) {
	doc := etree.NewDocument()
	m.fill(doc.CreateElement(prefix + ":instance"))
	return doc.WriteToString()
}

func (m Metadata) fill(e *etree.Element) {
	e.CreateAttr("xmlns:"+prefix, Namespace)
	set := func(tag, text string) {
		if text != "" {
			e.CreateElement(prefix + ":" + tag).SetText(text)
		}
	}
	set("uuid", m.Instance)
	set("name", m.Name)
	set("generation", strconv.FormatUint(m.Generation, 10))
	set("migration", m.Migration)
}

// ParseMetadata reads our element from what libvirt gives for it; ok is false
// if xml is something else or has no UUID.
func ParseMetadata(xml string) (m Metadata, ok bool) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(xml); err != nil || doc.Root() == nil {
		return Metadata{}, false
	}
	return readMetadata(doc.Root())
}

// readMetadata reads the element by its local names: libvirt hands it out with
// or without a prefix, depending on the call.
func readMetadata(e *etree.Element) (m Metadata, ok bool) {
	if e.Tag != "instance" {
		return Metadata{}, false
	}
	for _, c := range e.ChildElements() {
		switch c.Tag {
		case "uuid":
			m.Instance = c.Text()
		case "name":
			m.Name = c.Text()
		case "migration":
			m.Migration = c.Text()
		case "generation":
			n, err := strconv.ParseUint(c.Text(), 10, 64)
			if err != nil {
				return Metadata{}, false
			}
			m.Generation = n
		}
	}
	return m, m.Instance != ""
}

// find gives the element with our namespace inside a domain, or nil.
func find(domain *etree.Element) *etree.Element {
	metadata := domain.SelectElement("metadata")
	if metadata == nil {
		return nil
	}
	for _, c := range metadata.ChildElements() {
		if c.NamespaceURI() == Namespace {
			return c
		}
	}
	return nil
}

// domainOf parses a domain's XML and gives the document with its root.
func domainOf(xml string) (*etree.Document, *etree.Element, error) {
	doc := etree.NewDocument()
	doc.ReadSettings.PreserveCData = true
	if err := doc.ReadFromString(xml); err != nil {
		return nil, nil, fault.WrapAs(fault.Internal, err, "parse_domain_xml", "")
	}
	root := doc.Root()
	if root == nil || root.Tag != "domain" {
		return nil, nil, fault.New(fault.Internal, "parse_domain_xml", "", "the document is not a domain")
	}
	return doc, root, nil
}
