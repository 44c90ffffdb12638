package agent

import (
	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/inventory"
	"github.com/compute-agent/compute-agent/pkg/migration"
)

// What the host's guests take is a running total: it follows each change of the copy.

func (l *ledger) keepInstanceLocked(i *instance.Instance) {
	l.dropInstanceLocked(i.UUID)
	l.instances[i.UUID] = i
	l.taken = l.taken.Add(i.Spec)
}

func (l *ledger) dropInstanceLocked(id string) {
	if old, known := l.instances[id]; known {
		l.taken = l.taken.Without(old.Spec)
		delete(l.instances, id)
	}
}

// recountLocked follows a record from what it was to what it is; nil is none.
func (l *ledger) recountLocked(was, is *migration.Record) {
	if was != nil && claims(*was) {
		l.taken = l.taken.Without(was.Instance.Spec)
	}
	if is != nil && claims(*is) {
		l.taken = l.taken.Add(is.Instance.Spec)
	}
}

// takenWithout gives what instances and claims of guests to come take of the host, the
// instance id and its claims left out.
func (l *ledger) takenWithout(id string) inventory.Taken {
	l.mu.RLock()
	defer l.mu.RUnlock()
	t := l.taken
	if i, known := l.instances[id]; known {
		t = t.Without(i.Spec)
	}
	for _, key := range l.byGuest[id] {
		if r := l.records[key]; claims(*r) {
			t = t.Without(r.Instance.Spec)
		}
	}
	return t
}
