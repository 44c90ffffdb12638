package rpc

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// The headers of design section 4. Error headers are those of NATS micro services.
const (
	headerRequestID   = "Compute-Request-Id"
	headerVersion     = "Compute-Version"
	headerExpires     = "Compute-Expires"
	headerTrace       = "traceparent"
	headerHeartbeat   = "Compute-Heartbeat" // of a call: how often; of a message back: this is no reply yet
	headerMsgID       = "Nats-Msg-Id"
	headerErrorCode   = "Nats-Service-Error-Code"
	headerError       = "Nats-Service-Error"
	headerKVOperation = "KV-Operation"
)

// maxHeaderValue bounds what one header may hold: an id or a version is far
// shorter, and a header that is echoed into logs and events should stay small.
const maxHeaderValue = 256

// methodInfo is the one method that this package answers itself: who serves
// this host. A starting agent asks it to refuse a second agent with its name.
const methodInfo = "_info"

// header is a message's header, in the shape that NATS uses.
type header = map[string][]string

func headerGet(h header, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// names derives every name on the wire from the prefix.
type names struct{ prefix string }

func (n names) call(host, method string) string {
	return n.prefix + ".call." + EscapeHost(host) + "." + method
}

func (n names) cast(host, method string) string {
	return n.prefix + ".cast." + EscapeHost(host) + "." + method
}

func (n names) event(f EventFilter) string {
	token := func(s string) string {
		if s == "" {
			return "*"
		}
		return EscapeHost(s)
	}
	return n.prefix + ".event." + token(f.Host) + "." + token(f.Kind) + "." + token(f.ID)
}

func (n names) upper() string          { return strings.ToUpper(n.prefix) }
func (n names) castStream() string     { return n.upper() + "_CASTS" }
func (n names) eventStream() string    { return n.upper() + "_EVENTS" }
func (n names) bucket(b Bucket) string { return n.upper() + "_" + string(b) }

// subjectTokens cuts prefix.class.<host>.<rest…> into host and rest; false when
// the subject is not of that class, lacks tokens or its host is not escaped lawfully.
func (n names) subjectTokens(class, subject string) (host string, rest []string, ok bool) {
	tail, found := strings.CutPrefix(subject, n.prefix+"."+class+".")
	if !found {
		return "", nil, false
	}
	tokens := strings.Split(tail, ".")
	host, err := UnescapeHost(tokens[0])
	return host, tokens[1:], err == nil && host != "" && len(tokens) > 1
}

// checkToken refuses what can't be a method or kind: one subject token of
// [A-Za-z0-9_-].
func checkToken(what, s string) *fault.Error {
	if s == "" || !isToken(s) || len(s) > maxHeaderValue {
		return fault.Newf(fault.InvalidArgument, "", what, "%s is not a word of letters, digits, _ and -", quoted(s))
	}
	return nil
}

// checkHeaderValue refuses what would break a header line.
func checkHeaderValue(name, v string) *fault.Error {
	if len(v) > maxHeaderValue {
		return fault.Newf(fault.InvalidArgument, "", name, "the header is longer than %d bytes", maxHeaderValue)
	}
	if strings.TrimSpace(v) != v {
		return fault.New(fault.InvalidArgument, "", name, "the header begins or ends with a space, which would be lost")
	}
	for i := range len(v) {
		if v[i] < ' ' || v[i] == 0x7f {
			return fault.New(fault.InvalidArgument, "", name, "the header holds a control character")
		}
	}
	return nil
}

// checkHost refuses an empty host name; any other bytes can be escaped.
func checkHost(op, host string) error {
	if host == "" || len(host) > maxHeaderValue {
		return fault.Newf(fault.InvalidArgument, op, "host", "a host name has 1 to %d bytes, this one %d", maxHeaderValue, len(host))
	}
	return nil
}

// encodeMessage gives the headers of m. Unset members leave no header behind.
func encodeMessage(m Message) (header, error) {
	if err := checkToken("method", m.Method); err != nil {
		return nil, err
	}
	h := make(header, 6)
	values := make([]string, 0, 5) // one piece of memory for all of them
	set := func(name, value string) {
		values = append(values, value)
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	for _, f := range [...]struct{ name, value string }{
		{headerRequestID, m.RequestID}, {headerVersion, m.Version}, {headerTrace, m.Trace},
	} {
		if f.value == "" {
			continue
		}
		if err := checkHeaderValue(f.name, f.value); err != nil {
			return nil, err
		}
		set(f.name, f.value)
	}
	if !m.Expires.IsZero() {
		set(headerExpires, m.Expires.UTC().Format(time.RFC3339Nano))
	}
	if m.Heartbeat != 0 {
		if err := checkHeartbeat(m.Heartbeat); err != nil {
			return nil, err
		}
		set(headerHeartbeat, m.Heartbeat.String())
	}
	return h, nil
}

// checkHeartbeat bounds how often an agent may be asked to speak.
func checkHeartbeat(d time.Duration) *fault.Error {
	if d < 100*time.Millisecond || d > time.Hour {
		return fault.Newf(fault.InvalidArgument, "", headerHeartbeat, "%s is not between 100ms and 1h", d)
	}
	return nil
}

// decodeHeartbeat reads the header; empty is none.
func decodeHeartbeat(v string) (time.Duration, *fault.Error) {
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, fault.Newf(fault.InvalidArgument, "", headerHeartbeat, "%s is not a duration such as 5s", quoted(v))
	}
	return d, checkHeartbeat(d)
}

// decodeMessage reads what encodeMessage wrote. With a fault the message holds
// what could be read. needID: a cast without a request id can't be told apart
// from its repetition, and is refused.
func decodeMessage(method string, h header, body []byte, needID bool) (Message, *fault.Error) {
	m := Message{Args: body}
	bad := checkToken("method", method)
	if bad == nil {
		m.Method = method
	}
	for _, f := range [...]struct {
		name string
		to   *string
	}{{headerRequestID, &m.RequestID}, {headerVersion, &m.Version}, {headerTrace, &m.Trace}} {
		v := headerGet(h, f.name)
		if err := checkHeaderValue(f.name, v); err != nil {
			bad = err
			continue
		}
		*f.to = v
	}
	if v := headerGet(h, headerExpires); v != "" {
		at, err := time.Parse(time.RFC3339, v)
		if err != nil {
			bad = fault.Newf(fault.InvalidArgument, "", headerExpires, "%s is not a time in RFC 3339", quoted(v))
		}
		m.Expires = at
	}
	var err *fault.Error
	if m.Heartbeat, err = decodeHeartbeat(headerGet(h, headerHeartbeat)); err != nil {
		bad = err
	}
	if needID && m.RequestID == "" && bad == nil {
		bad = fault.New(fault.InvalidArgument, "", headerRequestID, "the header is missing").
			WithHint("send a UUID; the same one when you send the same request again")
	}
	return m, bad
}

// msgID is the Nats-Msg-Id of a cast: the same request to two hosts is two casts.
func msgID(host, requestID string) string { return EscapeHost(host) + "/" + requestID }

// encodeReply gives headers and body of an answer. An error travels as headers
// for generic tools and as a body for ours; its text is made one short line.
func encodeReply(r Reply) (header, []byte) {
	if r.Err == nil {
		return nil, r.Body
	}
	w := fault.Wire(r.Err)
	body, err := json.Marshal(w)
	if err != nil { // a detail that JSON can't hold must not cost the caller its answer
		w.Details = map[string]any{"dropped": "details could not be encoded: " + err.Error()}
		body, _ = json.Marshal(w)
	}
	return header{
		headerErrorCode: {strconv.Itoa(w.Kind.Code())},
		headerError:     {oneLine(string(w.Kind) + ": " + w.Message)},
	}, body
}

// decodeReply reads what encodeReply wrote.
func decodeReply(h header, body []byte) ([]byte, error) {
	code := headerGet(h, headerErrorCode)
	if code == "" {
		return body, nil
	}
	var e fault.Error
	if err := json.Unmarshal(body, &e); err == nil && e.Kind != "" {
		return nil, &e
	}
	return nil, fault.New(kindOfCode(code), "", "", headerGet(h, headerError)).WithDetail("code", code)
}

// kindOfCode maps the number of a service that sent no body of ours.
func kindOfCode(code string) fault.Kind {
	for _, k := range []fault.Kind{
		fault.InvalidArgument, fault.Unauthorized, fault.NotFound, fault.Conflict, fault.PreconditionFailed, fault.Busy,
		fault.Expired, fault.Cancelled, fault.UnsupportedMethod, fault.UnsupportedVersion, fault.Timeout, fault.Unavailable,
	} {
		if strconv.Itoa(k.Code()) == code {
			return k
		}
	}
	return fault.Internal
}

// oneLine makes s fit for a header.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.TrimSpace(clip(s))
}

// quoted is a text of others as a message quotes it: no longer than a header, whatever
// is in it.
func quoted(s string) string {
	q := strconv.Quote(s)
	if len(q) > maxHeaderValue {
		return strings.ToValidUTF8(q[:maxHeaderValue-4], "") + `..."`
	}
	return q
}

// clip shortens what goes into a header.
func clip(s string) string {
	if len(s) > maxHeaderValue {
		return strings.ToValidUTF8(s[:maxHeaderValue-3], "") + "..."
	}
	return s
}

// encodeEvent checks an event and gives its subject.
func (n names) encodeEvent(e Event) (string, error) {
	if e.ID == "" {
		return "", fault.New(fault.InvalidArgument, "publish", "event", "an event needs an id")
	}
	if err := checkToken("kind", e.Kind); err != nil {
		return "", err
	}
	if err := checkHost("publish", e.Host); err != nil {
		return "", err
	}
	if err := checkHeaderValue(headerMsgID, e.MsgID); err != nil {
		return "", err
	}
	return n.event(EventFilter{Host: e.Host, Kind: e.Kind, ID: e.ID}), nil
}

// decodeEvent reads an event's subject; false: not one of ours, to be skipped.
func (n names) decodeEvent(subject string) (Event, bool) {
	host, rest, ok := n.subjectTokens("event", subject)
	if !ok || len(rest) != 2 {
		return Event{}, false
	}
	id, err := UnescapeHost(rest[1])
	return Event{Host: host, Kind: rest[0], ID: id}, err == nil
}

// encodeKey writes a view's key; patterns may hold "*" tokens.
func encodeKey(op string, key []string, pattern bool) (string, error) {
	if len(key) == 0 {
		return "", fault.New(fault.InvalidArgument, op, "key", "a key has at least one token")
	}
	tokens := make([]string, len(key))
	for i, t := range key {
		switch {
		case t == "":
			return "", fault.Newf(fault.InvalidArgument, op, "key", "token %d of the key is empty", i)
		case pattern && t == "*":
			tokens[i] = t
		default:
			tokens[i] = EscapeHost(t)
		}
	}
	return strings.Join(tokens, "."), nil
}

// decodeKey reverses encodeKey; false: somebody else's key, to be skipped.
func decodeKey(key string) ([]string, bool) {
	tokens := strings.Split(key, ".")
	for i, t := range tokens {
		plain, err := UnescapeHost(t)
		if err != nil || plain == "" {
			return nil, false
		}
		tokens[i] = plain
	}
	return tokens, true
}

// subjectMatches applies a pattern whose tokens may be "*".
func subjectMatches(pattern, subject string) bool {
	for {
		p, prest, pmore := strings.Cut(pattern, ".")
		s, srest, smore := strings.Cut(subject, ".")
		if p != "*" && p != s || pmore != smore {
			return false
		}
		if !pmore {
			return true
		}
		pattern, subject = prest, srest
	}
}
