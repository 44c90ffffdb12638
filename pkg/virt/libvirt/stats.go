package libvirt

import (
	"context"
	"fmt"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

// statsWanted are the groups asked for in one call.
const statsWanted = golibvirt.DomainStatsState | golibvirt.DomainStatsCPUTotal | golibvirt.DomainStatsBalloon |
	golibvirt.DomainStatsVCPU | golibvirt.DomainStatsInterface | golibvirt.DomainStatsBlock

// Stats reads the counters of a running domain. A domain that a job holds gives
// what can be read without waiting for it.
func (d *Driver) Stats(ctx context.Context, id string) (virt.Stats, error) {
	const op = "stats"
	return control(ctx, d, op, id, func(lv *golibvirt.Libvirt) (virt.Stats, error) {
		dom, err := lookup(lv, id)
		if err != nil {
			return virt.Stats{}, err
		}
		records, err := lv.ConnectGetAllDomainStats([]golibvirt.Domain{dom}, uint32(statsWanted), uint32(golibvirt.ConnectGetAllDomainsStatsNowait))
		if err != nil {
			return virt.Stats{}, err
		}
		if len(records) == 0 {
			return virt.Stats{}, golibvirt.Error{Code: uint32(golibvirt.ErrNoDomain), Message: "the domain is gone"}
		}
		f := fieldsOf(records[0].Params)
		s, _ := stateOf(int32(f.number("state.state")), 0) //nolint:gosec // eight small numbers
		if off(s) {
			return virt.Stats{}, fault.Newf(fault.Conflict, "", "", "the domain is %s: it has no counters", s)
		}
		return statsOf(f), nil
	})
}

// statsOf reads the counters by their names (libvirt-domain.h, VIR_DOMAIN_STATS_*).
func statsOf(f fields) virt.Stats {
	s := virt.Stats{
		CPUTimeNS: f.number("cpu.time"),
		MemoryKiB: f.number("balloon.current"),
		RSSKiB:    f.number("balloon.rss"),
		Disks:     map[string]virt.IO{},
		Nics:      map[string]virt.IO{},
		Extra:     map[string]int64{},
	}
	for i := range f.number("block.count") {
		p := fmt.Sprintf("block.%d.", i)
		s.Disks[f.text(p+"name")] = virt.IO{
			ReadBytes: f.number(p + "rd.bytes"), Reads: f.number(p + "rd.reqs"),
			WriteBytes: f.number(p + "wr.bytes"), Writes: f.number(p + "wr.reqs"), Errors: f.number(p + "errors"),
		}
	}
	for i := range f.number("net.count") {
		p := fmt.Sprintf("net.%d.", i)
		s.Nics[f.text(p+"name")] = virt.IO{
			ReadBytes: f.number(p + "rx.bytes"), Reads: f.number(p + "rx.pkts"),
			WriteBytes: f.number(p + "tx.bytes"), Writes: f.number(p + "tx.pkts"),
			Errors: f.number(p+"rx.errs") + f.number(p+"tx.errs"),
		}
	}
	for name := range f {
		if strings.HasPrefix(name, "balloon.") || name == "vcpu.current" {
			s.Extra[name] = int64(min(f.number(name), 1<<62))
		}
	}
	return s
}
