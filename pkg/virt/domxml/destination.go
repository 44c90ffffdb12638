package domxml

import "github.com/compute-agent/compute-agent/pkg/fault"

// Destination is what changes in a domain's XML when it moves to another host.
type Destination struct {
	Generation uint64 // the generation the destination will own
	Migration  string // the migration's UUID
}

// ForDestination gives the XML of a domain of ours as the destination is to run
// it: the same document with the new generation and migration in our metadata,
// so that the domain over there is the owner from birth. Everything else stays
// as libvirt wrote it, known to us or not; above all no MTU is added to an
// interface that had none, because QEMU would refuse the stream (nova.md 1.4).
func ForDestination(xml string, to Destination) (string, error) {
	doc, root, err := domainOf(xml)
	if err != nil {
		return "", err
	}
	e := find(root)
	if e == nil {
		return "", fault.New(fault.Conflict, "migrate", text(root, "uuid"), "the domain is foreign: it carries no metadata of ours").
			WithHint("only instances that this agent built can be moved by it")
	}
	m, ok := readMetadata(e)
	if !ok {
		return "", fault.New(fault.Internal, "migrate", text(root, "uuid"), "our metadata in the domain's XML can't be read")
	}
	m.Generation, m.Migration = to.Generation, to.Migration
	metadata, at := e.Parent(), e.Index()
	metadata.RemoveChildAt(at)
	fresh := metadata.CreateElement(prefix + ":instance")
	m.fill(fresh)
	metadata.InsertChildAt(at, fresh)
	return doc.WriteToString()
}
