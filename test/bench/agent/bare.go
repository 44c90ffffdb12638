package main

import (
	"context"
	"encoding/json"
	"os"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func selfPID() int { return os.Getpid() }

// roleBare answers show_instance with nothing but nats.go, encoding/json and a
// map: the same bodies as the agent's, each request in its own goroutine. What the
// map holds it asks the agent.
func roleBare(ctx context.Context, url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	reply, err := ask(ctx, nc, "compute.call."+benchHost+"."+api.ListInstances, struct{}{})
	if err != nil {
		return err
	}
	var all api.InstancesResult
	if err := json.Unmarshal(reply.Data, &all); err != nil {
		return err
	}
	byID := map[string]instance.Instance{}
	for _, i := range all.Instances {
		byID[i.UUID] = i
	}
	_, err = nc.Subscribe("bare.handler.*", func(m *nats.Msg) {
		go func() {
			var args api.InstanceArgs
			if json.Unmarshal(m.Data, &args) != nil {
				return
			}
			body, err := json.Marshal(api.InstanceResult{Instance: byID[args.Instance]})
			if err == nil {
				_ = m.Respond(body)
			}
		}()
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// roleEcho sends back what it gets, in the goroutine of the subscription.
func roleEcho(ctx context.Context, url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	if _, err := nc.Subscribe("bare.echo.*", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
