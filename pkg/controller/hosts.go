package controller

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/internal/near"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// Host is a host as its agent reported it last, and whether it still does.
type Host struct {
	api.HostView
	Down       bool          `json:"down"`        // no report for longer than service_down_time
	Age        time.Duration `json:"-"`           // since the last report
	AgeSeconds float64       `json:"age_seconds"` // the same
}

func (c *Client) host(v api.HostView) Host {
	now := time.Now()
	age := max(0, now.Sub(v.ReportedAt))
	return Host{HostView: v, Down: v.Down(now, c.opts.ServiceDownTime), Age: age, AgeSeconds: age.Round(time.Millisecond).Seconds()}
}

// Hosts lists every host that has reported, by name, also those that are down.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	views, err := list[api.HostView](ctx, c, rpc.Hosts, "*")
	if err != nil {
		return nil, err
	}
	hosts := make([]Host, 0, len(views))
	for _, v := range views {
		hosts = append(hosts, c.host(v))
	}
	slices.SortFunc(hosts, func(a, b Host) int { return strings.Compare(a.Host, b.Host) })
	return hosts, nil
}

// FindHost gives one host as it reported last; not_found names near ones.
func (c *Client) FindHost(ctx context.Context, name string) (Host, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	entry, err := patient(ctx, c, isSilent, func() (rpc.Entry, error) { return c.bus.Get(ctx, rpc.Hosts, []string{name}) })
	if errors.Is(err, fault.NotFound) {
		return Host{}, c.noHost(ctx, name)
	}
	if err != nil {
		return Host{}, fault.Wrap(err, "find host", name)
	}
	var v api.HostView
	if !decode(entry.Value, &v) || !writtenBy(entry.Key, v) { // not an agent's word; the next report replaces it
		return Host{}, c.noHost(ctx, name)
	}
	return c.host(v), nil
}

// UpHost is FindHost for a host that is to do something: unavailable when it is down.
func (c *Client) UpHost(ctx context.Context, name string) (Host, error) {
	h, err := c.FindHost(ctx, name)
	if err != nil {
		return Host{}, err
	}
	if h.Down {
		return h, fault.Newf(fault.Unavailable, "", "host "+name, "it is down: it last reported %s ago", h.Age.Round(time.Second)).
			WithHint("start compute-agent on %s; with --force a cast waits in the stream for its return", name).
			WithDetail("reported_at", h.ReportedAt)
	}
	return h, nil
}

func (c *Client) noHost(ctx context.Context, name string) error {
	e := fault.New(fault.NotFound, "", "host "+name, "no agent has reported under this name")
	hosts, err := c.Hosts(ctx)
	if err != nil || len(hosts) == 0 {
		return e.WithHint("no host has reported yet: start one with `compute-agent run`")
	}
	names := make([]string, 0, len(hosts))
	for _, h := range hosts {
		names = append(names, h.Host)
	}
	if hint := near.Hint(name, names); hint != "" {
		return e.WithHint("%s", hint)
	}
	return e.WithHint("`compute-agent host list` shows the %d that exist", len(names))
}

// GetHostInfo asks the host itself, not the view.
func (c *Client) GetHostInfo(ctx context.Context, host string) (Host, error) {
	var v api.HostView
	err := c.Call(ctx, host, api.GetHostInfo, api.NoArgs{}, &v)
	return c.host(v), err
}

// GetAvailableResource tells what the host has and what is claimed of it.
func (c *Client) GetAvailableResource(ctx context.Context, host string) (api.Resources, error) {
	var r api.Resources
	err := c.Call(ctx, host, api.GetAvailableResource, api.NoArgs{}, &r)
	return r, err
}

// SetHostEnabled opens the host for new instances and incoming migrations, or
// closes it with a reason that whoever is refused will read.
func (c *Client) SetHostEnabled(ctx context.Context, host string, enabled bool, reason string) (Host, error) {
	var v api.HostView
	err := c.Call(ctx, host, api.SetHostEnabled, api.HostEnabledArgs{Enabled: enabled, Reason: reason}, &v)
	return c.host(v), err
}
