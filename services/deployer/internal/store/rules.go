package store

import (
	"time"

	"github.com/sallyport-pki/sallyport/services/internal/check"
)

// Rules hold for every row, at any moment; docs/doctor.md says what to do when one does not.
var Rules = []check.Rule{
	{Name: "assignment-once", Broken: check.SQL(`SELECT 'assignments/' || min(id), 'and ' || max(id) || ' are both for ' || deployment || ' on ' || host || '/' || target FROM assignment
		WHERE state <> 'withdrawn' GROUP BY deployment, host, target HAVING count(*) > 1 ORDER BY 1`)},
	{Name: "assignment-of-deployment", Broken: check.SQL(`SELECT 'assignments/' || a.id, 'is ' || a.state || ' for deployment ' || a.deployment || ', which is not there' FROM assignment a
		LEFT JOIN deployment d ON d.name = a.deployment WHERE a.state <> 'withdrawn' AND d.name IS NULL ORDER BY a.id`)},
	{Name: "host-of-assignment", Broken: check.SQL(`SELECT 'assignments/' || a.id, 'is told to ' || a.host || ' at revision ' || CAST(a.told_revision AS TEXT) || ', after the host''s own' FROM assignment a
		LEFT JOIN host h ON h.name = a.host WHERE a.told_revision > coalesce(h.revision, 0) ORDER BY a.id`)},
	{Name: "told-generation", Broken: check.SQL(`SELECT 'assignments/' || id, 'is in generation ' || CAST(generation AS TEXT) || ', its agent was told of ' || CAST(told_generation AS TEXT) FROM assignment
		WHERE told_generation > generation OR told_generation = generation AND told_attempt > attempt ORDER BY id`)},
	{Name: "csr-kept", Broken: check.SQL(`SELECT 'assignments/' || id, 'is requested without a CSR' FROM assignment WHERE state = 'requested' AND csr IS NULL ORDER BY id`)},
	{Name: "request-overdue", Broken: check.SQL(`SELECT 'assignments/' || id, 'is requested, and the issuer was to be spoken to more than ten minutes ago' FROM assignment
		WHERE state = 'requested' AND request_next < $1 ORDER BY id`, 10*time.Minute)},
	{Name: "certificate-assigned", Broken: check.SQL(`SELECT 'assignments/' || id, 'is ' || state || ' with certificate "' || fingerprint || '"' FROM assignment
		WHERE state IN ('issued', 'served', 'installed') AND (fingerprint = '' OR told_chain IS NULL)
		OR state IN ('planned', 'assigned', 'requested') AND fingerprint <> '' ORDER BY id`)},
	{Name: "served-is-assigned", Broken: check.SQL(`SELECT 'assignments/' || id, 'is called served, with ' || served || ' where ' || fingerprint || ' is assigned' FROM assignment
		WHERE state = 'served' AND served <> fingerprint ORDER BY id`)},
	{Name: "retry-overdue", Broken: check.SQL(`SELECT 'assignments/' || id, 'has failed and was to be tried again more than ten minutes ago. ' || message FROM assignment
		WHERE state = 'failed' AND next_attempt < $1 ORDER BY id`, 10*time.Minute)},
	{Name: "intent-open", Broken: check.SQL(`SELECT 'intents/' || id, 'has waited for more than an hour to be told to the issuer' FROM intent WHERE created < $1 ORDER BY id`, time.Hour)},
	{Name: "agent-key", Broken: check.SQL(`SELECT 'agents/' || host, 'has no key' FROM agent WHERE key_hash = '' ORDER BY host`)},
	{Name: "token-once", Broken: check.SQL(`SELECT 'tokens/' || id, 'was used by ' || used_by || ' and is for ' || host FROM join_token
		WHERE used_by <> '' AND host <> '' AND used_by <> host ORDER BY id`)},
	{Name: "report-of-assignment", Broken: check.SQL(`SELECT 'assignments/' || r.assignment, 'was reported by ' || min(r.host) || ' and is not there' FROM report r
		LEFT JOIN assignment a ON a.id = r.assignment WHERE a.id IS NULL AND r.assignment <> '' GROUP BY r.assignment ORDER BY 1`)},
}
