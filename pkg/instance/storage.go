package instance

// StorageFacts is what a host says of a guest's disks: of those that it has, and
// of the places where they would be.
type StorageFacts struct {
	Folder string      `json:"folder,omitempty"` // identity of the folder of instances, as DiskFacts.Identity
	Disks  []DiskFacts `json:"disks,omitempty"`  // one for each disk of the spec, in its order
}

// DiskFacts is one disk on one host.
type DiskFacts struct {
	Target        string `json:"target"`                   // the guest's device, e.g. vda
	Format        string `json:"format,omitempty"`         // raw or qcow2
	CapacityBytes uint64 `json:"capacity_bytes,omitempty"` // what the guest sees; 0: not known on this host
	// Identity is the same on two hosts when both reach the very same bytes: the network
	// file system and the file's number on it, or the storage pool's own source. Empty:
	// the disk is not there, or nothing proves that it is more than this host's own.
	Identity string `json:"identity,omitempty"`
}

// Same reports whether two hosts' facts speak of one disk.
func (d DiskFacts) Same(other DiskFacts) bool {
	return d.Identity != "" && d.Identity == other.Identity
}
