package rpc_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// matches reports whether a NATS pattern covers a subject or a narrower pattern.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		if token == ">" {
			return len(s) > i
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(p) == len(s)
}

func allowed(list []string, subject string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return matches(p, subject) })
}

// Whatever two hosts are called, neither's credential covers a subject of the other.
func TestPermissionsKeepHostsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 20, 80)
		a, b := name.Draw(t, "a"), name.Draw(t, "b")
		if a == b {
			t.Skip("one host")
		}
		r, err := rpc.Permissions("", rpc.RoleHost, a, "pre_live_migration")
		if err != nil {
			t.Fatal(err)
		}
		other := rpc.EscapeHost(b)
		for _, s := range []string{
			"compute.event." + other + ".task.x", "$KV.COMPUTE_HOSTS." + other, "$KV.COMPUTE_INSTANCES." + other + ".x", "$KV.COMPUTE_MIGRATIONS." + other + ".x",
			"compute.cast." + other + ".m", "compute.call." + other + ".m", "compute.call." + other + "._info",
			"$JS.API.CONSUMER.MSG.NEXT.COMPUTE_CASTS." + other, "$JS.API.CONSUMER.INFO.COMPUTE_CASTS." + other, "$JS.ACK.COMPUTE_CASTS." + other + ".1.1.1.1.0",
			"$JS.API.CONSUMER.CREATE.COMPUTE_CASTS." + rpc.EscapeHost(a), "$JS.API.CONSUMER.CREATE.KV_COMPUTE_HOSTS.x",
		} {
			if allowed(r.Publish, s) {
				t.Errorf("host %q may publish %s", a, s)
			}
		}
		for _, s := range []string{"compute.call." + other + ".m", rpc.InboxOf(b) + ".x", "_INBOX.x", "compute.event." + other + ".task.x"} {
			if allowed(r.Subscribe, s) {
				t.Errorf("host %q may subscribe %s", a, s)
			}
		}
	})
}

func TestPermissionsRefused(t *testing.T) {
	for what, f := range map[string]func() (rpc.Rights, error){
		"no host":           func() (rpc.Rights, error) { return rpc.Permissions("", rpc.RoleHost, "") },
		"a wild prefix":     func() (rpc.Rights, error) { return rpc.Permissions(">", rpc.RoleHost, "a") },
		"a wild method":     func() (rpc.Rights, error) { return rpc.Permissions("", rpc.RoleHost, "a", "*") },
		"a role of its own": func() (rpc.Rights, error) { return rpc.Permissions("", "king", "a") },
	} {
		if r, err := f(); !errors.Is(err, fault.InvalidArgument) {
			t.Errorf("%s: %v, %v, want invalid_argument", what, r, err)
		}
	}
}

// A prefix of one's own is in every name.
func TestPermissionsPrefix(t *testing.T) {
	for _, role := range []rpc.Role{rpc.RoleHost, rpc.RoleController} {
		r, err := rpc.Permissions("lab2", role, "node1")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append(r.Publish, r.Subscribe...) {
			if strings.Contains(strings.ToLower(s), "compute") {
				t.Errorf("%s: %s names the default prefix", role, s)
			}
		}
	}
}
