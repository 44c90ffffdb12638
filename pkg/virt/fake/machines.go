package fake

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// List gives every domain, by UUID.
func (d *Driver) List(ctx context.Context) ([]virt.Domain, error) {
	return ask(ctx, d, "List", "", func() ([]virt.Domain, error) {
		out := make([]virt.Domain, 0, len(d.host.domains))
		for _, dom := range d.host.domains {
			out = append(out, dom.view())
		}
		slices.SortFunc(out, func(a, b virt.Domain) int { return strings.Compare(a.UUID, b.UUID) })
		return out, nil
	})
}

// Lookup gives one domain.
func (d *Driver) Lookup(ctx context.Context, id string) (virt.Domain, error) {
	return ask(ctx, d, "Lookup", id, func() (virt.Domain, error) {
		dom, err := d.host.findLocked("Lookup", id)
		if err != nil {
			return virt.Domain{}, err
		}
		return dom.view(), nil
	})
}

// Check gives every reason against a definition: its machine type, a CPU mode
// without sense, files below Config.Missing.
func (d *Driver) Check(ctx context.Context, def virt.Definition) ([]string, error) {
	return ask(ctx, d, "Check", def.Spec.UUID, func() ([]string, error) {
		return d.host.cfg.reasons(def.Spec), nil
	})
}

func (c Config) reasons(s instance.Spec) []string {
	out := []string{}
	if s.Machine != "" && !slices.Contains(c.MachineTypes, s.Machine) {
		out = append(out, fmt.Sprintf("machine type %q is unknown here; known: %s", s.Machine, strings.Join(c.MachineTypes, ", ")))
	}
	files := []string{s.Boot.Kernel, s.Boot.Initrd}
	for _, disk := range s.Disks {
		files = append(files, disk.Source.File, disk.Source.Image)
	}
	for _, f := range files {
		if slices.ContainsFunc(c.Missing, func(prefix string) bool { return f != "" && strings.HasPrefix(f, prefix) }) {
			out = append(out, fmt.Sprintf("file %s does not exist", f))
		}
	}
	return out
}

// Define makes a domain or defines it anew.
func (d *Driver) Define(ctx context.Context, def virt.Definition) error {
	id, h := def.Spec.UUID, d.host
	_, err := ask(ctx, d, "Define", id, func() (struct{}, error) {
		dom := h.domains[id]
		switch {
		case dom != nil && dom.foreign:
			return struct{}{}, foreign("Define", id)
		case dom != nil && (dom.job != nil || dom.arriving != nil):
			return struct{}{}, conflict("Define", id, "a migration of this guest runs")
		}
		if reasons := h.cfg.reasons(def.Spec); len(reasons) > 0 {
			return struct{}{}, fault.New(fault.PreconditionFailed, "Define", id, strings.Join(reasons, "; ")).WithDetail("reasons", reasons)
		}
		if dom == nil {
			dom = &domain{id: -1, state: virt.Shutoff}
			h.domains[id] = dom
		}
		dom.def, dom.persistent = def, true
		h.countLocked(id).Defines++
		h.tellLocked(virt.EventDefined, id, "")
		return struct{}{}, h.changedLocked(id)
	})
	return err
}

// Undefine removes a domain that is off, its save too. A fake has no files; with
// files what is kept of its last job goes as well.
func (d *Driver) Undefine(ctx context.Context, id string, files bool) error {
	h := d.host
	_, err := ask(ctx, d, "Undefine", id, func() (struct{}, error) {
		dom := h.domains[id]
		if files && (dom == nil || !dom.active()) {
			delete(h.completed, id)
		}
		switch {
		case dom == nil:
			return struct{}{}, nil
		case dom.foreign:
			return struct{}{}, foreign("Undefine", id)
		case dom.active():
			return struct{}{}, conflict("Undefine", id, "the domain is "+string(dom.state)+": destroy it first")
		}
		delete(h.domains, id)
		h.countLocked(id).Undefines++
		h.tellLocked(virt.EventUndefined, id, "")
		return struct{}{}, h.changedLocked(id)
	})
	return err
}

// Console gives the last n bytes of the present or last run's console.
func (d *Driver) Console(ctx context.Context, id string, n int) ([]byte, error) {
	return ask(ctx, d, "Console", id, func() ([]byte, error) {
		dom, err := d.host.findLocked("Console", id)
		if err != nil {
			return nil, err
		}
		log := dom.log(time.Now())
		if n > 0 && n < len(log) {
			log = log[len(log)-n:]
		}
		return []byte(log), nil
	})
}

// Stats reads a running domain's counters: a CPU second is a second of uptime
// for each vCPU, a twentieth of it used.
func (d *Driver) Stats(ctx context.Context, id string) (virt.Stats, error) {
	return ask(ctx, d, "Stats", id, func() (virt.Stats, error) {
		dom, err := d.host.findLocked("Stats", id)
		if err != nil {
			return virt.Stats{}, err
		}
		if !dom.active() {
			return virt.Stats{}, conflict("Stats", id, "the domain is off")
		}
		spec, up := dom.running.Spec, dom.brain.uptime(time.Now())
		s := virt.Stats{
			CPUTimeNS: unsigned(int64(up)) / 20 * unsigned(int64(spec.VCPUs)),
			MemoryKiB: unsigned(int64(spec.MemoryMiB)) << 10,
			RSSKiB:    unsigned(int64(spec.MemoryMiB)) << 10 / 100 * unsigned(int64(dom.brain.Guest.UsedPercent)),
			Nics:      map[string]virt.IO{},
		}
		for _, p := range spec.Ports {
			s.Nics[p.Device()] = virt.IO{}
		}
		return s, nil
	})
}

// unsigned is n, or 0 for a negative number.
func unsigned(n int64) uint64 { return uint64(max(n, 0)) }
