package controller

import (
	"context"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

// BuildAndRunInstance builds spec on host. A spec without a UUID gets one, which
// the task's events name; one without a name is called by its UUID.
func (c *Client) BuildAndRunInstance(ctx context.Context, host string, spec instance.Spec) (*Task, error) {
	if spec.UUID == "" {
		spec.UUID = instance.NewUUID()
	}
	return c.Cast(ctx, host, api.BuildAndRunInstance, api.BuildArgs{Spec: spec})
}

// TerminateInstance stops an instance and removes everything of it.
func (c *Client) TerminateInstance(ctx context.Context, ref string) (*Task, error) {
	return c.verb(ctx, api.TerminateInstance, ref)
}

// StartInstance starts an instance that is off.
func (c *Client) StartInstance(ctx context.Context, ref string) (*Task, error) {
	return c.verb(ctx, api.StartInstance, ref)
}

// PauseInstance freezes the guest's CPUs.
func (c *Client) PauseInstance(ctx context.Context, ref string) (*Task, error) {
	return c.verb(ctx, api.PauseInstance, ref)
}

// UnpauseInstance lets a paused guest go on.
func (c *Client) UnpauseInstance(ctx context.Context, ref string) (*Task, error) {
	return c.verb(ctx, api.UnpauseInstance, ref)
}

// SuspendInstance saves the guest's memory to disk and stops it.
func (c *Client) SuspendInstance(ctx context.Context, ref string) (*Task, error) {
	return c.verb(ctx, api.SuspendInstance, ref)
}

// ResumeInstance starts a suspended guest where it was.
func (c *Client) ResumeInstance(ctx context.Context, ref string) (*Task, error) {
	return c.verb(ctx, api.ResumeInstance, ref)
}

// StopInstance powers an instance off; clean asks the guest first.
func (c *Client) StopInstance(ctx context.Context, ref string, clean bool) (*Task, error) {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return nil, fault.Wrap(err, api.StopInstance, "")
	}
	return c.Cast(ctx, i.Host, api.StopInstance, api.StopArgs{Instance: i.UUID, CleanShutdown: &clean})
}

// RebootInstance reboots SOFT or HARD ([api.RebootSoft], [api.RebootHard]).
func (c *Client) RebootInstance(ctx context.Context, ref, rebootType string) (*Task, error) {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return nil, fault.Wrap(err, api.RebootInstance, "")
	}
	return c.Cast(ctx, i.Host, api.RebootInstance, api.RebootArgs{Instance: i.UUID, RebootType: rebootType})
}

// verb casts a method that takes an instance and nothing else to where it is.
func (c *Client) verb(ctx context.Context, method, ref string) (*Task, error) {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return nil, fault.Wrap(err, method, "")
	}
	return c.Cast(ctx, i.Host, method, api.InstanceArgs{Instance: i.UUID})
}

// ExternalInstanceEvent tells host what happened to its instances outside.
func (c *Client) ExternalInstanceEvent(ctx context.Context, host string, events ...api.ExternalEvent) (*Task, error) {
	return c.Cast(ctx, host, api.ExternalInstanceEvent, api.ExternalEventArgs{Events: events})
}

// ShowInstance asks the instance's host for it, with its power state of this moment.
func (c *Client) ShowInstance(ctx context.Context, ref string) (instance.Instance, error) {
	var r api.InstanceResult
	err := c.ask(ctx, api.ShowInstance, ref, &r)
	return r.Instance, err
}

// ListInstances asks host for all of its instances.
func (c *Client) ListInstances(ctx context.Context, host string) ([]instance.Instance, error) {
	var r api.InstancesResult
	err := c.Call(ctx, host, api.ListInstances, api.NoArgs{}, &r)
	return r.Instances, err
}

// GetDiagnostics gives the counters of a running guest.
func (c *Client) GetDiagnostics(ctx context.Context, ref string) (api.DiagnosticsResult, error) {
	var r api.DiagnosticsResult
	err := c.ask(ctx, api.GetDiagnostics, ref, &r)
	return r, err
}

// GetConsoleOutput gives the last bytes of the guest's console; 0: as many as the
// agent gives unasked.
func (c *Client) GetConsoleOutput(ctx context.Context, ref string, bytes int) (string, error) {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return "", fault.Wrap(err, api.GetConsoleOutput, "")
	}
	var r api.ConsoleResult
	err = c.Call(ctx, i.Host, api.GetConsoleOutput, api.ConsoleArgs{Instance: i.UUID, TailLength: bytes}, &r)
	return r.Output, err
}

// ask calls a method that takes an instance and nothing else where the view has it.
func (c *Client) ask(ctx context.Context, method, ref string, reply any) error {
	i, err := c.FindInstance(ctx, ref)
	if err != nil {
		return fault.Wrap(err, method, "")
	}
	return c.Call(ctx, i.Host, method, api.InstanceArgs{Instance: i.UUID}, reply)
}
