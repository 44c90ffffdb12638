package rpc

import (
	"fmt"
	"strings"
	"time"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

// Role is what a credential is for.
type Role string

// The roles of design section 4.
const (
	RoleHost       Role = "host"       // an agent: acts as its host only
	RoleController Role = "controller" // asks agents, reads what they publish, makes streams and consumers
)

// Rights are the subjects that a NATS server has to allow one credential, and no
// others. [Permissions] makes them.
type Rights struct {
	Role        Role     `json:"role"`
	Host        string   `json:"host,omitempty"`
	InboxPrefix string   `json:"inbox_prefix"` // where its replies come
	Publish     []string `json:"publish"`
	Subscribe   []string `json:"subscribe"`
	// Responses lets it answer each request that it received so many times, within
	// ResponseTime, whatever inbox the request names; 0: not at all.
	Responses    int           `json:"allow_responses,omitempty"`
	ResponseTime time.Duration `json:"allow_responses_expires,omitempty"`
}

// responseTime bounds the longest call: pre_live_migration waits for ports up to
// vif_plugging_timeout, 300 s by default.
const responseTime = 15 * time.Minute

// Permissions gives the least rights of a role. host is read for RoleHost only;
// peerMethods are what one agent may call on another (the transport knows no
// method). An error is invalid_argument. What the rights keep apart, and what a
// server can't keep apart, stands in docs/security.md.
func Permissions(prefix string, role Role, host string, peerMethods ...string) (Rights, error) {
	if prefix == "" {
		prefix = DefaultPrefix
	}
	if err := (Config{Prefix: prefix}).validate(); err != nil {
		return Rights{}, err
	}
	for _, m := range peerMethods {
		if err := checkToken("method", m); err != nil {
			return Rights{}, err
		}
	}
	switch role {
	case RoleHost:
		if err := checkHost("permissions", host); err != nil {
			return Rights{}, err
		}
		return hostRights(names{prefix}, host, peerMethods), nil
	case RoleController:
		return controllerRights(names{prefix}), nil
	}
	return Rights{}, fault.Newf(fault.InvalidArgument, "permissions", "role", "%s is neither %s nor %s", quoted(string(role)), RoleHost, RoleController)
}

// InboxOf is where a host's replies come; its credential is limited to it.
func InboxOf(host string) string { return "_INBOX_" + EscapeHost(host) }

// defaultInbox is where a controller's replies come.
const defaultInbox = "_INBOX"

// hostRights: no consumer can be created and no message read raw, for the server
// would send what is stored to any subject that such a request names; the views are
// read by STREAM.MSG.GET, whose answer is data and never headers.
func hostRights(n names, host string, peerMethods []string) Rights {
	token, casts := EscapeHost(host), n.castStream()
	r := Rights{
		Role: RoleHost, Host: host, InboxPrefix: InboxOf(host), Responses: 1, ResponseTime: responseTime,
		Publish: []string{
			"$JS.API.CONSUMER.INFO." + casts + "." + token,
			"$JS.API.CONSUMER.MSG.NEXT." + casts + "." + token,
			"$JS.ACK." + casts + "." + token + ".>",
			n.event(EventFilter{Host: host}),
			kvSubject(n.bucket(Hosts), token),
			kvSubject(n.bucket(Instances), token+".*"),
			kvSubject(n.bucket(Migrations), token+".*"),
			streamGet + kvStream(n.bucket(Instances)),
			streamGet + kvStream(n.bucket(Migrations)),
			"$JS.API.STREAM.INFO." + kvStream(n.bucket(Instances)),
			"$JS.API.STREAM.INFO." + kvStream(n.bucket(Migrations)),
			n.call(host, methodInfo),
			defaultInbox + ".>", // controllers' inboxes, whose names can't be guessed: more than one message a call
		},
		Subscribe: append([]string{InboxOf(host) + ".>", n.call(host, "*")}, serviceSubjects(n)...),
	}
	for _, m := range peerMethods {
		r.Publish = append(r.Publish, n.prefix+".call.*."+m)
	}
	return r
}

// serviceSubjects are where NATS micro services answer.
func serviceSubjects(n names) []string {
	return []string{"$SRV.*", "$SRV.*." + n.prefix, "$SRV.*." + n.prefix + ".*"}
}

// controllerRights: all requests, no event, no view; of the casts it can make the
// durables, and pull none.
func controllerRights(n names) Rights {
	r := Rights{
		Role: RoleController, InboxPrefix: defaultInbox, Subscribe: []string{defaultInbox + ".>"},
		Publish: []string{n.prefix + ".call.*.*", n.prefix + ".cast.*.*", "$SRV.>", "$JS.API.INFO"},
	}
	casts := n.castStream()
	read := []string{n.eventStream()}
	for _, b := range Buckets() {
		read = append(read, kvStream(n.bucket(b)))
	}
	for _, stream := range append([]string{casts}, read...) {
		for _, verb := range []string{"INFO", "CREATE", "UPDATE"} {
			r.Publish = append(r.Publish, "$JS.API.STREAM."+verb+"."+stream)
		}
	}
	r.Publish = append(r.Publish, "$JS.API.CONSUMER.INFO."+casts+".*", "$JS.API.CONSUMER.CREATE."+casts+".*."+n.prefix+".cast.*.*")
	for _, stream := range read {
		r.Publish = append(r.Publish, "$JS.API.CONSUMER.CREATE."+stream+".>", "$JS.API.CONSUMER.DELETE."+stream+".*",
			"$JS.API.CONSUMER.INFO."+stream+".*", "$JS.API.CONSUMER.MSG.NEXT."+stream+".*")
		if stream != n.eventStream() {
			r.Publish = append(r.Publish, "$JS.API.DIRECT.GET."+stream+".>", streamGet+stream)
		}
	}
	return r
}

// Identity says how the server recognises a user: by the public part of an NKey,
// or by a name, which is a password's or (with verify_and_map) a certificate's.
type Identity struct {
	NKey, User, Password string
}

// Config writes one entry of the users list of a NATS server's configuration.
func (r Rights) Config(who Identity) string {
	var b strings.Builder
	b.WriteString("    {\n")
	switch {
	case who.NKey != "":
		fmt.Fprintf(&b, "      nkey: %s\n", who.NKey)
	default:
		fmt.Fprintf(&b, "      user: %q\n", who.User)
	}
	if who.Password != "" {
		fmt.Fprintf(&b, "      password: %q\n", who.Password)
	}
	b.WriteString("      permissions: {\n")
	writeAllow(&b, "publish", r.Publish)
	writeAllow(&b, "subscribe", r.Subscribe)
	if r.Responses > 0 {
		fmt.Fprintf(&b, "        allow_responses: { max: %d, expires: %q }\n", r.Responses, fmt.Sprintf("%dm", int(r.ResponseTime.Minutes())))
	}
	b.WriteString("      }\n    }\n")
	return b.String()
}

func writeAllow(b *strings.Builder, what string, subjects []string) {
	fmt.Fprintf(b, "        %s: { allow: [\n", what)
	for _, s := range subjects {
		fmt.Fprintf(b, "          %q\n", s)
	}
	b.WriteString("        ] }\n")
}
