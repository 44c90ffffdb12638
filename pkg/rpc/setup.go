package rpc

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// maxAckPending is how many casts a host may have read and not acknowledged: twice
// what an agent accepts at most (max_accepted_tasks).
const maxAckPending = 20_000

// Setup makes the streams, the buckets and the durable consumers of these hosts, or
// brings existing ones to t's configuration; what is right already stays untouched.
// It needs a controller's credential. A bus in memory needs no setup.
func Setup(ctx context.Context, t Transport, hosts ...string) error {
	c, ok := t.(*natsConn)
	if !ok {
		return nil
	}
	for _, cfg := range c.streams() {
		if err := c.setupStream(ctx, cfg); err != nil {
			return err
		}
	}
	for _, host := range hosts {
		if err := c.setupDurable(ctx, host); err != nil {
			return err
		}
	}
	return nil
}

// streams describes what Setup makes.
func (c *natsConn) streams() []jetstream.StreamConfig {
	window := 2 * c.cfg.AckWait
	list := []jetstream.StreamConfig{
		{
			Name: c.names.castStream(), Description: "casts to agents, kept until they are acknowledged",
			Subjects: []string{c.names.prefix + ".cast.*.*"}, Retention: jetstream.WorkQueuePolicy,
			MaxAge: c.cfg.MaxAge, Duplicates: min(window, c.cfg.MaxAge), Discard: jetstream.DiscardNew,
		},
		{
			Name: c.names.eventStream(), Description: "what agents report",
			Subjects: []string{c.names.prefix + ".event.*.*.*"}, Retention: jetstream.LimitsPolicy,
			MaxAge: c.cfg.EventsMaxAge, Duplicates: min(window, c.cfg.EventsMaxAge), AllowDirect: true,
		},
	}
	for _, b := range Buckets() {
		bucket := c.names.bucket(b)
		list = append(list, jetstream.StreamConfig{
			Name: kvStream(bucket), Description: "view of agents, written by them", Subjects: []string{kvSubject(bucket, ">")},
			MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, AllowDirect: true, Duplicates: 2 * time.Minute,
		})
	}
	for i := range list {
		list[i].Storage = jetstream.FileStorage
		list[i].AllowBatchPublish = c.cfg.Batches == BatchesOn && list[i].Retention != jetstream.WorkQueuePolicy // casts come one by one
		list[i].MaxMsgs, list[i].MaxBytes, list[i].MaxMsgSize, list[i].MaxConsumers = -1, -1, -1, -1
		if list[i].MaxMsgsPerSubject == 0 {
			list[i].MaxMsgsPerSubject = -1
		}
	}
	return list
}

// setupStream makes one stream, or updates the one that is there. Unless Replicas and
// Batches say otherwise an existing stream keeps its own.
func (c *natsConn) setupStream(ctx context.Context, cfg jetstream.StreamConfig) error {
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	cfg.Replicas = max(c.cfg.Replicas, 1)
	made, err := c.js.CreateStream(bounded, cfg)
	if err == nil {
		return knowsBatches(cfg, made.CachedInfo().Config)
	}
	if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) && !overlaps(err) {
		return setupFault(err, cfg.Name)
	}
	stream, unseen := c.js.Stream(bounded, cfg.Name)
	if unseen != nil { // the subjects are another stream's
		return setupFault(err, cfg.Name)
	}
	if c.cfg.Replicas == 0 {
		cfg.Replicas = stream.CachedInfo().Config.Replicas
	}
	if c.cfg.Batches == BatchesKeep {
		cfg.AllowBatchPublish = stream.CachedInfo().Config.AllowBatchPublish
	}
	if made, err = c.js.UpdateStream(bounded, cfg); err != nil {
		return setupFault(err, cfg.Name)
	}
	return knowsBatches(cfg, made.CachedInfo().Config)
}

// knowsBatches refuses a server that passes over what it does not know.
func knowsBatches(want, have jetstream.StreamConfig) error {
	if want.AllowBatchPublish && !have.AllowBatchPublish {
		return fault.New(fault.PreconditionFailed, "setup", want.Name, "the server knows no batches").
			WithHint("rpc.batches = on needs NATS 2.14 or newer on every server; set it to keep until then")
	}
	return nil
}

// streamSubjectOverlap is the server's code for subjects that a stream has already. Two
// agents that make the streams at the same moment meet it for a stream of the same name too.
const streamSubjectOverlap = 10065

func overlaps(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == streamSubjectOverlap
}

// setupDurable makes the consumer that a host's agent reads, or updates it.
func (c *natsConn) setupDurable(ctx context.Context, host string) error {
	if err := checkHost("setup", host); err != nil {
		return err
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	_, err := c.js.CreateOrUpdateConsumer(bounded, c.names.castStream(), jetstream.ConsumerConfig{
		Durable: EscapeHost(host), Description: "casts to " + clip(host), FilterSubject: c.names.cast(host, "*"),
		DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy, AckWait: c.cfg.AckWait,
		MaxDeliver: -1, MaxAckPending: maxAckPending, ReplayPolicy: jetstream.ReplayInstantPolicy,
	})
	return setupFault(err, c.names.castStream()+" "+host)
}

func setupFault(err error, what string) error {
	if err == nil {
		return nil
	}
	f := natsFault(err, "setup", what)
	var api *jetstream.APIError
	if f.Kind == fault.Internal && errors.As(err, &api) {
		f.Kind = fault.Conflict
		f.Hint = "what is there can't be changed to what this version needs; look at it with the nats tool, or choose another rpc.prefix"
	}
	return f
}
