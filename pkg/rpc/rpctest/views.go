package rpctest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

func viewCases() []testCase {
	return []testCase{
		{"view/put, get, delete", viewPutGet},
		{"view/many at once", viewPutAll},
		{"view/list", viewList},
		{"view/list of many", viewListMany},
		{"view/odd hosts", viewOddHosts},
		{"view/refused", viewRefused},
		{"view/watch", viewWatch},
		{"view/watch ends with its context", viewWatchContext},
	}
}

func put(t *testing.T, v rpc.Views, b rpc.Bucket, value string, key ...string) {
	t.Helper()
	must(t, fmt.Sprintf("Put %q", key), v.Put(within(t), b, key, []byte(value)))
}

func viewPutGet(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	key := []string{"node1.example", "a1"}
	_, err := ctl.Get(within(t), rpc.Instances, key)
	wantKind(t, "Get before Put", err, fault.NotFound)
	put(t, agent, rpc.Instances, "one", key...)
	put(t, agent, rpc.Instances, "two", key...)
	e, err := ctl.Get(within(t), rpc.Instances, key)
	must(t, "Get", err)
	if string(e.Value) != "two" || e.Bucket != rpc.Instances || !cmp.Equal(e.Key, key) || e.Revision == 0 || e.At.IsZero() || e.Deleted {
		t.Errorf("Get = %+v, want the second value under its key", e)
	}
	_, err = ctl.Get(within(t), rpc.Migrations, key)
	wantKind(t, "Get from another view", err, fault.NotFound)
	must(t, "Delete", agent.Delete(within(t), rpc.Instances, key))
	_, err = ctl.Get(within(t), rpc.Instances, key)
	wantKind(t, "Get after Delete", err, fault.NotFound)
	must(t, "Delete of what is gone", agent.Delete(within(t), rpc.Instances, key))
}

func viewPutAll(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	put(t, agent, rpc.Instances, "old", "node1", "gone")
	entries := []rpc.Entry{{Bucket: rpc.Instances, Key: []string{"node1", "gone"}, Deleted: true}}
	const many = 1500 // more than are on their way at once
	for i := range many {
		entries = append(entries, rpc.Entry{Bucket: rpc.Instances, Key: []string{"node1", fmt.Sprintf("i%04d", i)}, Value: fmt.Append(nil, i)})
	}
	n, err := agent.PutAll(within(t), entries)
	if must(t, "PutAll", err); n != len(entries) {
		t.Errorf("PutAll stored %d, want %d", n, len(entries))
	}
	if got := values(t, ctl, rpc.Instances, "*", "*"); len(got) != many || got[many-1] != `["node1" "i1499"]=1499` {
		t.Errorf("%d entries are there, want %d", len(got), many)
	}
	n, err = agent.PutAll(within(t), []rpc.Entry{
		{Bucket: rpc.Instances, Key: []string{"node1", "good"}, Value: []byte("1")}, {Bucket: "NONE", Key: []string{"node1"}},
	})
	wantKind(t, "PutAll with a bad one", err, fault.InvalidArgument)
	if n != 1 {
		t.Errorf("PutAll stored %d, want 1: what is before the bad one", n)
	}
}

// values lists a pattern as key=value strings.
func values(t *testing.T, v rpc.Views, b rpc.Bucket, pattern ...string) []string {
	t.Helper()
	entries, err := v.List(within(t), b, pattern)
	must(t, fmt.Sprintf("List %q", pattern), err)
	var list []string
	for _, e := range entries {
		list = append(list, fmt.Sprintf("%q=%s", e.Key, e.Value))
	}
	return list
}

func wantList(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func viewList(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	wantList(t, "an empty view", values(t, ctl, rpc.Instances, "*", "*"))
	put(t, agent, rpc.Instances, "1", "node1.example", "a")
	put(t, agent, rpc.Instances, "2", "node1.example", "b")
	put(t, agent, rpc.Instances, "3", "node2", "a")
	put(t, agent, rpc.Instances, "4", "node2", "c")
	must(t, "Delete", agent.Delete(within(t), rpc.Instances, []string{"node2", "c"}))
	wantList(t, "all", values(t, ctl, rpc.Instances, "*", "*"), `["node1.example" "a"]=1`, `["node1.example" "b"]=2`, `["node2" "a"]=3`)
	wantList(t, "of a host", values(t, ctl, rpc.Instances, "node1.example", "*"), `["node1.example" "a"]=1`, `["node1.example" "b"]=2`)
	wantList(t, "found by UUID", values(t, ctl, rpc.Instances, "*", "a"), `["node1.example" "a"]=1`, `["node2" "a"]=3`)
	wantList(t, "exactly one", values(t, ctl, rpc.Instances, "node2", "a"), `["node2" "a"]=3`)
	wantList(t, "of nobody", values(t, ctl, rpc.Instances, "node3", "*"))
	wantList(t, "of another length", values(t, ctl, rpc.Instances, "*"))
}

func viewListMany(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	const many = 1500
	ctx := within(t)
	together(10, func(worker int) {
		for i := range many / 10 {
			if err := agent.Put(ctx, rpc.Instances, []string{"node1", fmt.Sprintf("%d-%d", worker, i)}, []byte("x")); err != nil {
				t.Errorf("Put = %v", err)
				return
			}
		}
	})
	if got := len(values(t, rig.Connect(t, "ctl"), rpc.Instances, "*", "*")); got != many {
		t.Errorf("List gave %d entries, want %d", got, many)
	}
}

func viewOddHosts(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	for _, host := range oddHosts() {
		put(t, agent, rpc.Hosts, host, host)
	}
	for _, host := range oddHosts() {
		e, err := ctl.Get(within(t), rpc.Hosts, []string{host})
		if err != nil || string(e.Value) != host || e.Key[0] != host {
			t.Errorf("Get %q = %+v, %v", host, e, err)
		}
	}
	if got := values(t, ctl, rpc.Hosts, "*"); len(got) != len(oddHosts()) {
		t.Errorf("List = %v, want %d entries", got, len(oddHosts()))
	}
}

func viewRefused(t *testing.T, rig *Rig) {
	agent := rig.Connect(t, "agent")
	wantKind(t, "Put without a key", agent.Put(within(t), rpc.Hosts, nil, nil), fault.InvalidArgument)
	wantKind(t, "Put with an empty token", agent.Put(within(t), rpc.Hosts, []string{"a", ""}, nil), fault.InvalidArgument)
	wantKind(t, "Put into no view", agent.Put(within(t), "NOPE", []string{"a"}, nil), fault.InvalidArgument)
	_, err := agent.Get(within(t), "NOPE", []string{"a"})
	wantKind(t, "Get from no view", err, fault.InvalidArgument)
}

func viewWatch(t *testing.T, rig *Rig) {
	agent, ctl := rig.Connect(t, "agent"), rig.Connect(t, "ctl")
	put(t, agent, rpc.Instances, "1", "node1.example", "a")
	put(t, agent, rpc.Instances, "2", "node1.example", "b")
	put(t, agent, rpc.Instances, "no", "node2", "a")
	done, ctx := errors.New("done"), within(t)
	var got []string
	err := ctl.Watch(ctx, rpc.Instances, []string{"node1.example", "*"}, func(e rpc.Entry) error {
		got = append(got, fmt.Sprintf("%q=%s initial=%v deleted=%v", e.Key, e.Value, e.Initial, e.Deleted))
		switch len(got) {
		case 2: // what was there is read: now change something
			if err := agent.Put(ctx, rpc.Instances, []string{"node1.example", "c"}, []byte("3")); err != nil {
				return err
			}
			if err := agent.Put(ctx, rpc.Instances, []string{"node2", "c"}, []byte("no")); err != nil {
				return err
			}
			return agent.Delete(ctx, rpc.Instances, []string{"node1.example", "a"})
		case 4:
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatalf("Watch = %v, want the error of its function; seen: %v", err, got)
	}
	wantList(t, "watched", got,
		`["node1.example" "a"]=1 initial=true deleted=false`, `["node1.example" "b"]=2 initial=true deleted=false`,
		`["node1.example" "c"]=3 initial=false deleted=false`, `["node1.example" "a"]= initial=false deleted=true`)
}

func viewWatchContext(t *testing.T, rig *Rig) {
	ctx, cancel := context.WithCancelCause(within(t))
	cause := errors.New("enough")
	put(t, rig.Connect(t, "agent"), rpc.Hosts, "x", "node1")
	err := rig.Connect(t, "ctl").Watch(ctx, rpc.Hosts, []string{"*"}, func(rpc.Entry) error { cancel(cause); return nil })
	if !errors.Is(err, cause) {
		t.Errorf("Watch = %v, want the cause of its context's end", err)
	}
}
