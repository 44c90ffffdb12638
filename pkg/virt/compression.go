package virt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
)

// CompressesStreams reports whether a compression is of parallel connections, and needs
// some; the others are of the one stream that there is without them.
func CompressesStreams(name string) bool {
	return name == instance.CompressZlib || name == instance.CompressZstd
}

// CompressionReasons gives every reason why the request's compression is not possible
// anywhere: an unknown name, or what it can't be combined with. None: no reason is known
// without looking at a host.
func (r MigrateRequest) CompressionReasons() (reasons []string) {
	name := r.Compression
	switch {
	case name == "":
		return nil
	case !slices.Contains(instance.Compressions(), name):
		return []string{fmt.Sprintf("compression: %q is unknown; there are %s", name, strings.Join(instance.Compressions(), ", "))}
	case CompressesStreams(name) && r.Parallel == 0:
		reasons = append(reasons, "compression "+name+" is for parallel connections, and none are asked for")
	case !CompressesStreams(name) && r.Parallel > 0:
		reasons = append(reasons, "compression "+name+" and parallel connections don't go together")
	}
	if r.PostCopy && name != instance.CompressXBZRLE {
		reasons = append(reasons, "compression "+name+" and post-copy don't go together")
	}
	return reasons
}

// RefuseCompression makes one refusal of those reasons, in the name of op; nil: there are none.
func (r MigrateRequest) RefuseCompression(op string) error {
	reasons := r.CompressionReasons()
	if len(reasons) == 0 {
		return nil
	}
	return fault.New(fault.InvalidArgument, op, r.Instance, strings.Join(reasons, "; ")).WithDetail("reasons", reasons)
}
