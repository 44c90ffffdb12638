package migration

import (
	"fmt"
	"slices"
	"strings"

	"github.com/compute-agent/compute-agent/pkg/instance"
)

// diskPlan says what becomes of a guest's disks.
type diskPlan struct {
	Copies   []instance.DiskFacts // writable, and the destination has not got them: their content goes with the guest
	Shared   []string             // writable targets that both hosts reach
	InFolder bool                 // a disk in the instance's folder is the other host's too: the folder stays
	unknown  []int                // writable, not marked as shared, and the source told nothing of them
}

// planDisks compares what the two hosts say of a guest's disks. A disk is shared when
// its spec says so or when both hosts give it the same identity; a read-only one is not
// copied (nova.md 1.4). An unlike identity is no proof of two disks: the destination
// refuses to copy onto what is there already.
func planDisks(s instance.Spec, here, there instance.StorageFacts) diskPlan {
	p := diskPlan{InFolder: here.Folder != "" && here.Folder == there.Folder}
	for i, disk := range s.Disks {
		mine, theirs := factsAt(here, i), factsAt(there, i)
		shared := disk.Shared || mine.Same(theirs)
		p.InFolder = p.InFolder || shared && disk.Source.Image != ""
		switch {
		case disk.ReadOnly:
		case shared:
			p.Shared = append(p.Shared, or(mine.Target, fmt.Sprintf("disk %d", i)))
		case mine.Target == "" || mine.CapacityBytes == 0:
			p.unknown = append(p.unknown, i)
		default:
			p.Copies = append(p.Copies, mine)
		}
	}
	return p
}

// factsAt gives what a host told of the disk at that place; nothing if it told nothing.
func factsAt(f instance.StorageFacts, i int) instance.DiskFacts {
	if i < len(f.Disks) {
		return f.Disks[i]
	}
	return instance.DiskFacts{}
}

// reasons are nova's, by block_migration's three values: nil copies what must be
// copied; true wants something to copy, or at least nothing shared (InvalidLocalStorage);
// false wants nothing to copy (InvalidSharedStorage).
func (p diskPlan) reasons(s instance.Spec, block *bool) []string {
	var out []string
	for _, i := range p.unknown {
		d := s.Disks[i].Source
		out = append(out, fmt.Sprintf("disk %d (%s) is not shared, and its size is not known: it can't be copied", i, or(d.File, or(d.Image, d.Volume))))
	}
	if block == nil {
		return out
	}
	if *block && len(p.Copies) == 0 && len(p.Shared) > 0 {
		out = append(out, fmt.Sprintf("InvalidLocalStorage: block migration was asked for, but all disks (%s) are shared with the destination", strings.Join(p.Shared, ", ")))
	}
	if !*block && len(p.Copies) > 0 {
		out = append(out, fmt.Sprintf("InvalidSharedStorage: disks %s are not shared with the destination, and block migration was ruled out", strings.Join(p.targets(), ", ")))
	}
	return out
}

// stale gives a reason for each disk that both hosts reach and that this one caches.
func (p diskPlan) stale(cached []string) []string {
	var out []string
	for _, t := range p.Shared {
		if slices.Contains(cached, t) {
			out = append(out, fmt.Sprintf("disk %s is the same on both hosts, but it is opened through the source's page cache: the destination could read stale data; "+
				"mark it as shared in the spec and reboot the instance HARD", t))
		}
	}
	return out
}

func (p diskPlan) targets() []string { return targetsOf(p.Copies) }

// targetsOf names the disks.
func targetsOf(disks []instance.DiskFacts) []string {
	var out []string
	for _, d := range disks {
		out = append(out, d.Target)
	}
	return out
}

// capacities lists the sizes that nova's waits scale with.
func capacities(disks []instance.DiskFacts) []int64 {
	out := make([]int64, 0, len(disks))
	for _, d := range disks {
		out = append(out, int64(min(d.CapacityBytes, 1<<62)))
	}
	return out
}

// pick gives the facts of the disks with these targets.
func pick(disks []instance.DiskFacts, targets []string) []instance.DiskFacts {
	var out []instance.DiskFacts
	for _, d := range disks {
		if slices.Contains(targets, d.Target) {
			out = append(out, d)
		}
	}
	return out
}

// disagreement says, on the destination, how the source's list of disks to copy differs
// from its own: a disk would be missing, or a shared one copied onto itself.
func (p diskPlan) disagreement(copies []string) []string {
	var reasons []string
	own := p.targets()
	for _, t := range own {
		if !slices.Contains(copies, t) {
			reasons = append(reasons, fmt.Sprintf("disk %s is not shared with this host and would not be copied", t))
		}
	}
	for _, t := range copies {
		if !slices.Contains(own, t) {
			reasons = append(reasons, fmt.Sprintf("disk %s would be copied, but it is not one that only the source has", t))
		}
	}
	return reasons
}
