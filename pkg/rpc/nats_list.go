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
// matches, or for the last one.
type streamGetRequest struct {
	Sequence uint64 `json:"seq,omitempty"`
	Next     string `json:"next_by_subj,omitempty"`
	Last     string `json:"last_by_subj,omitempty"`
}

type streamGetAnswer struct {
	answer
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
	stream, subject := kvStream(bucket), kvSubject(bucket, encoded)
	end, err := c.nextMessage(ctx, stream, streamGetRequest{Last: subject})
	if err != nil || end == nil {
		return nil, err
	}
	found := newListing(b, bucket)
	for next := uint64(1); next <= end.Message.Sequence; {
		a, err := c.nextMessage(ctx, stream, streamGetRequest{Sequence: next, Next: subject})
		if err != nil {
			return nil, err
		}
		if a == nil {
			break
		}
		next = a.Message.Sequence + 1
		found.take(a)
	}
	return c.complete(ctx, encoded, found)
}

// listing collects the newest entry of each key, deleted ones as well.
type listing struct {
	view   Bucket
	bucket string
	order  []string
	by     map[string]Entry // by encoded key
}

func newListing(b Bucket, bucket string) *listing {
	return &listing{view: b, bucket: bucket, by: map[string]Entry{}}
}

func (l *listing) take(a *streamGetAnswer) {
	m := a.Message
	headers, _ := nats.DecodeHeadersMsg(m.Headers) // what can't be read marks no deletion
	key, _ := decodeKey(strings.TrimPrefix(m.Subject, kvSubject(l.bucket, "")))
	l.put(m.Subject, Entry{Bucket: l.view, Key: key, Value: m.Data, Revision: m.Sequence, At: m.Time, Deleted: deleted(headers)})
}

func (l *listing) put(subject string, e Entry) {
	if old, known := l.by[subject]; !known {
		l.order = append(l.order, subject)
	} else if old.Revision > e.Revision {
		return
	}
	l.by[subject] = e
}

// entries leaves out what is deleted and what is somebody else's.
func (l *listing) entries() []Entry {
	var list []Entry
	for _, subject := range l.order {
		if e := l.by[subject]; e.Key != nil && !e.Deleted {
			list = append(list, e)
		}
	}
	return list
}

// complete adds the keys that a list has missed: one that is rewritten while it is
// read stands at another place each time, and a server passes over it.
func (c *natsConn) complete(ctx context.Context, encoded string, l *listing) ([]Entry, error) {
	stream := kvStream(l.bucket)
	for offset := 0; ; {
		page, err := c.subjects(ctx, stream, kvSubject(l.bucket, encoded), offset)
		if err != nil {
			return nil, err
		}
		for subject := range page.State.Subjects {
			if _, known := l.by[subject]; known {
				continue
			}
			a, err := c.nextMessage(ctx, stream, streamGetRequest{Last: subject})
			if err != nil {
				return nil, err
			}
			if a != nil {
				l.take(a)
			}
		}
		if offset += len(page.State.Subjects); len(page.State.Subjects) == 0 || offset >= page.Total {
			return l.entries(), nil
		}
	}
}

// streamInfo is what complete reads of a stream's information.
type streamInfo struct {
	answer
	Total int `json:"total"`
	State struct {
		Subjects map[string]uint64 `json:"subjects"`
	} `json:"state"`
}

// subjects gives one page of the subjects that a stream holds.
func (c *natsConn) subjects(ctx context.Context, stream, filter string, offset int) (info streamInfo, err error) {
	refused, err := c.askStream(ctx, "$JS.API.STREAM.INFO.", stream, map[string]any{"subjects_filter": filter, "offset": offset}, &info)
	if err == nil && refused != nil {
		err = refused.fault(stream)
	}
	return info, err
}

// nextMessage gives nil when there is none.
func (c *natsConn) nextMessage(ctx context.Context, stream string, ask streamGetRequest) (*streamGetAnswer, error) {
	var a streamGetAnswer
	refused, err := c.askStream(ctx, streamGet, stream, ask, &a)
	switch {
	case err != nil:
		return nil, err
	case refused == nil:
		return &a, nil
	case refused.Code == 404 && !strings.Contains(refused.Description, "stream"):
		return nil, nil //nolint:nilnil // no further message, and nothing is wrong
	default:
		return nil, refused.fault(stream)
	}
}

// answer is part of each answer of the server's API: it may refuse in the place of what
// was asked for.
type answer struct {
	Error *refusal `json:"error"`
}

func (a *answer) refused() *refusal { return a.Error }

type refusal struct {
	Code        int    `json:"code"`
	Description string `json:"description"`
}

func (r *refusal) fault(stream string) error {
	return fault.Newf(fault.Unavailable, "list", stream, "the server answers %d %s", r.Code, r.Description).
		WithHint("run compute-agent nats-setup once for this NATS, and see that its servers run with JetStream")
}

// askStream asks the server's API about a stream and reads what it answers, or that it
// refuses.
func (c *natsConn) askStream(ctx context.Context, subject, stream string, ask any, a interface{ refused() *refusal }) (*refusal, error) {
	body, err := JSON(ask)
	if err != nil {
		return nil, err
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	m, err := c.nc.RequestWithContext(bounded, subject+stream, body)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, natsFault(err, "list", stream)
	}
	if err := json.Unmarshal(m.Data, a); err != nil {
		return nil, fault.WrapAs(fault.Internal, err, "list", stream)
	}
	return a.refused(), nil
}
