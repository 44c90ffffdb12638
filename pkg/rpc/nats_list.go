package rpc

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// streamGet begins the subject of a request for one message of a stream. Its answer
// holds the message as data: unlike a direct get it can't be made to carry stored
// headers to a subject of the asker's choice.
const streamGet = "$JS.API.STREAM.MSG.GET."

// streamGetRequest asks for the first message at or after a sequence whose subject
// matches.
type streamGetRequest struct {
	Sequence uint64 `json:"seq"`
	Next     string `json:"next_by_subj"`
}

type streamGetAnswer struct {
	Error *struct {
		Code        int    `json:"code"`
		Description string `json:"description"`
	} `json:"error"`
	Message struct {
		Subject  string    `json:"subject"`
		Sequence uint64    `json:"seq"`
		Headers  []byte    `json:"hdrs"`
		Data     []byte    `json:"data"`
		Time     time.Time `json:"time"`
	} `json:"message"`
}

// listHost lists keys of one host, a request each.
func (c *natsConn) listHost(ctx context.Context, b Bucket, pattern []string) ([]Entry, error) {
	bucket, encoded, err := c.place("list", b, pattern, true)
	if err != nil {
		return nil, err
	}
	if err := c.usable("list"); err != nil {
		return nil, err
	}
	var list []Entry
	for next := uint64(1); ; {
		a, err := c.nextMessage(ctx, kvStream(bucket), streamGetRequest{Sequence: next, Next: kvSubject(bucket, encoded)})
		if err != nil {
			return nil, err
		}
		if a == nil {
			return list, nil
		}
		m := a.Message
		next = m.Sequence + 1
		key, ours := decodeKey(strings.TrimPrefix(m.Subject, kvSubject(bucket, "")))
		headers, _ := nats.DecodeHeadersMsg(m.Headers) // what can't be read marks no deletion
		if ours && !deleted(headers) {
			list = append(list, Entry{Bucket: b, Key: key, Value: m.Data, Revision: m.Sequence, At: m.Time})
		}
	}
}

// nextMessage gives nil when there is none.
func (c *natsConn) nextMessage(ctx context.Context, stream string, ask streamGetRequest) (*streamGetAnswer, error) {
	body, err := JSON(ask)
	if err != nil {
		return nil, err
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	m, err := c.nc.RequestWithContext(bounded, streamGet+stream, body)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, natsFault(err, "list", stream)
	}
	var a streamGetAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "list", stream)
	}
	if a.Error == nil {
		return &a, nil
	}
	if a.Error.Code == 404 && !strings.Contains(a.Error.Description, "stream") {
		return nil, nil //nolint:nilnil // no further message, and nothing is wrong
	}
	return nil, fault.Newf(fault.Unavailable, "list", stream, "the server answers %d %s", a.Error.Code, a.Error.Description).
		WithHint("run compute-agent nats-setup once for this NATS, and see that its servers run with JetStream")
}
