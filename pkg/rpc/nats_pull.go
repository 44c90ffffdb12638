package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

const (
	pullBatch   = 512              // asked for at most in one pull
	pullRoom    = 4 * pullBatch    // messages that may wait in memory: a pull, and what an abandoned one still gives
	pullExpires = 30 * time.Second // the server ends a pull without messages; the next one follows
)

// errTrouble says that the consumer has to be looked at before the next pull.
var errTrouble = errors.New("the consumer does not answer")

/*
puller reads one JetStream consumer by pull requests, one at a time:

	idle ──ask──▶ open ──last message, 404, 408──▶ idle
	                └──409, 503, silence, lost connection──▶ errTrouble, idle

A request never asks for more than the caller is about to take, so that little
waits in memory while its AckWait runs. It speaks the protocol itself, for it
must see trouble at once, and needs no right beyond MSG.NEXT and its inbox.
*/
type puller struct {
	conn    *natsConn
	subject string // where pull requests go
	inbox   string // answers come to inbox.<round>
	sub     *nats.Subscription
	msgs    chan *nats.Msg

	once sync.Once
	gone chan struct{} // closed by close

	// used by the one reader alone
	round int
	open  int             // messages that the open pull may still give
	epoch context.Context //nolint:containedctx // of the connection that carried the open pull
}

func (c *natsConn) newPuller(stream, consumer string) (*puller, error) {
	p := &puller{
		conn: c, subject: "$JS.API.CONSUMER.MSG.NEXT." + stream + "." + consumer, inbox: c.nc.NewInbox(),
		msgs: make(chan *nats.Msg, pullRoom), gone: make(chan struct{}),
	}
	var err error
	if p.sub, err = c.nc.ChanSubscribe(p.inbox+".*", p.msgs); err != nil {
		return nil, natsFault(err, "read", stream)
	}
	return p, nil
}

// close ends reading; a waiting next returns.
func (p *puller) close() {
	p.once.Do(func() {
		close(p.gone)
		_ = p.sub.Unsubscribe() // fails only when the connection is closed, and then it is done
	})
}

// next waits for a message; up to want may follow it without another request.
// errTrouble: look at the consumer, then come again.
func (p *puller) next(ctx context.Context, want int) (*nats.Msg, error) {
	for {
		if m, err := p.more(); m != nil || err != nil {
			return m, err
		}
		if p.open <= 0 {
			if err := p.ask(ctx, want); err != nil {
				return nil, err
			}
		}
		if m, err := p.wait(ctx); m != nil || err != nil {
			return m, err
		}
	}
}

// more gives a message that is there already.
func (p *puller) more() (*nats.Msg, error) {
	for {
		select {
		case m := <-p.msgs:
			if data, err := p.sort(m); data || err != nil {
				return m, err
			}
		default:
			return nil, nil //nolint:nilnil // nothing is there, and nothing is wrong
		}
	}
}

// wait blocks for the next thing of the open pull. Both nil: look again.
func (p *puller) wait(ctx context.Context) (*nats.Msg, error) {
	silence := time.NewTimer(2 * p.conn.cfg.Heartbeat)
	defer silence.Stop()
	select {
	case m := <-p.msgs:
		data, err := p.sort(m)
		if !data {
			m = nil
		}
		return m, err
	case <-silence.C:
	case <-p.epoch.Done():
	case <-p.gone:
		return nil, errReaderClosed()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	p.open = 0
	return nil, errTrouble
}

func errReaderClosed() error {
	return fault.New(fault.Unavailable, "read", "", "the reader is closed")
}

// pullRequest is the body of a pull.
type pullRequest struct {
	Batch     int           `json:"batch"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat"`
}

// ask opens a pull, waiting for the connection first.
func (p *puller) ask(ctx context.Context, want int) error {
	up, epoch := p.conn.state()
	select {
	case <-up:
	default:
		select {
		case <-up:
		case <-p.conn.life.Done():
			return errClosed("read")
		case <-p.gone:
			return errReaderClosed()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		_, epoch = p.conn.state()
	}
	want = min(max(want, 1), pullBatch)
	body, err := json.Marshal(pullRequest{Batch: want, Expires: max(pullExpires, 3*p.conn.cfg.Heartbeat), Heartbeat: p.conn.cfg.Heartbeat})
	if err != nil {
		return fault.WrapAs(fault.Internal, err, "read", p.subject)
	}
	p.round++
	p.open, p.epoch = want, epoch
	err = p.conn.nc.PublishRequest(p.subject, p.inbox+"."+strconv.Itoa(p.round), body)
	switch {
	case err == nil:
		return nil
	case p.conn.nc.IsClosed():
		return errClosed("read")
	}
	p.open = 0
	return errTrouble
}

// sort tells messages of the stream (true) from the server's word about a pull,
// which comes to the pull's own subject.
func (p *puller) sort(m *nats.Msg) (bool, error) {
	round, word := strings.CutPrefix(m.Subject, p.inbox+".")
	if !word {
		p.open--
		return true, nil
	}
	if round != strconv.Itoa(p.round) {
		return false, nil // about a pull that was given up
	}
	switch m.Header.Get("Status") {
	case "100": // idle: all is well
		return false, nil
	case "404", "408": // nothing came in time
		p.open = 0
		return false, nil
	}
	p.open = 0 // deleted, moved, shut down, no responders
	return false, errTrouble
}

// patience is the growing pause between attempts that fail in a row.
type patience struct{ tries int }

// wait pauses; ctx's end is its cause.
func (b *patience) wait(ctx context.Context, gone <-chan struct{}) error {
	timer := time.NewTimer(jittered(20*time.Millisecond, b.tries, time.Second))
	defer timer.Stop()
	b.tries++
	select {
	case <-timer.C:
		return nil
	case <-gone:
		return errReaderClosed()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *patience) reset() { b.tries = 0 }
