package doctor

// remedies say what to do, by rule. docs/doctor.md explains each.
var remedies = map[string]string{
	// Every store.
	"outbox-stuck":    "NATS is away or full: see the service's log for \"events wait in the outbox\"; nothing is lost meanwhile",
	"event-skipped":   "see the service's log for \"event skipped for ever\"; upgrade the service if it is older than the one that told the event",
	"event-postponed": "see the message; it is tried every minute and goes on by itself once the cause is gone",
	"lease":           "stop all replicas of the service, delete that row of table lease, start them",
	"event-readable":  "the store is damaged: restore it from a backup",
	"database":        "the disk or the file is damaged: restore the store from a backup",
	"consumer-lag":    "see the service's log for \"not handled yet\" and \"not being received\"; it goes on by itself once the cause is gone",
	// The issuer's.
	"request-ended":             "the store was changed by hand or is damaged: restore it from a backup",
	"request-abandoned":         "cancel the request; the deployer asks again",
	"request-overdue":           "see the issuer's log: its worker does not work, or is far behind",
	"intent-open":               "the other side cannot be asked: see the message and the service's log",
	"issued-once":               "restore the store from a backup; revoke a certificate that no request knows",
	"certificate-of-request":    "restore the issuer's store from a backup; revoke the certificate if it is not wanted",
	"serial-once":               "stop issuing from this authority: its serial numbers must be unique; revoke both certificates",
	"order-of-request":          "cancel the request; the deployer asks again",
	"order-once":                "cancel both requests; the deployer asks again",
	"csr-kept":                  "renew the deployment: a new generation makes a new CSR",
	"authority-of-request":      "cancel the request: its authority was deleted",
	"chain-kept":                "restore the issuer's store from a backup, or renew what uses the certificate",
	"challenge-left":            "harmless to the certificate; the host may still answer it: restart its agent",
	"claim":                     "the clocks of the issuer's replicas differ: set them",
	"revocation-listed":         "see the issuer's log for \"a CRL is not made\"",
	"revocation-of-certificate": "restore the issuer's store from a backup",
	"crl-late":                  "see the issuer's log for \"a CRL is not made\"",
	"crl-complete":              "the store was changed by hand or is damaged: restore it from a backup, then revoke again what was revoked since",
	"certificate-bytes":         "the store is damaged: restore it from a backup",
	// The deployer's.
	"assignment-once":          "delete the deployment and apply it again",
	"assignment-of-deployment": "apply the deployment again, then delete it",
	"host-of-assignment":       "restart the host's agent, which then reads everything anew; restore the store from a backup if that does not help",
	"told-generation":          "renew the deployment: a new generation goes beyond what was told",
	"certificate-assigned":     "renew the deployment",
	"served-is-assigned":       "renew the deployment",
	"retry-overdue":            "see the deployer's log: its loops do not work, or are far behind",
	"agent-key":                "remove the agent and let it enrol again",
	"token-once":               "lock the host's agent and find out how it got the token",
	"report-of-assignment":     "the deployer's store is older than its agents' reports: was it restored from a backup? Apply the deployments again",
	// The inventory's.
	"certificate-summary": "it is put right when the certificate is next seen; restart the host's agent to have it scanned now",
	"sighting-known":      "restart the host's agent: its first scan tells the certificate anew",
	"issued-for":          "the inventory's store is damaged: restore it from a backup",
	"assignment-known":    "renew the deployment: its next step is told anew",
	"judgement-overdue":   "see the inventory's log: its watch does not work, or is far behind",
	// The audit service's.
	"log-indexed":   "stop the audit service, empty its database (it is made anew from the log), start it; if the same position is told again, the log has an event twice",
	"log-published": "the index is older than the stream: empty the audit service's database, which is made anew from the log",
	// Between services.
	"event-recorded":      "if NATS was down, wait; if its data was lost, the events before that are in the service's store only: keep this report as evidence of the gap",
	"record-of-event":     "a service's store was restored from a backup or replaced: the audit log is right, compare what it says with what is there",
	"request-of-wish":     "cancel the request if nobody wants it; was the deployer's store restored from a backup?",
	"request-wanted":      "cancel the request",
	"wish-requested":      "see the deployer's log for \"asking the issuer\"",
	"certificate-once":    "restore the issuer's store from a backup",
	"certificate-known":   "while messages wait for the inventory (events consumed), look again later with a longer --grace; if none do, see its log: events it has missed are told again by nobody: renew the certificate",
	"certificate-issued":  "the issuer's store is older than the certificate: was it restored from a backup? Revoke the certificate at the CA if nobody wants it",
	"certificate-of-wish": "renew the deployment",
	"served-seen":         "while messages wait for the inventory (events consumed), look again later with a longer --grace; if none do, restart the host's agent, which then reports anew; renew the deployment if that does not help",
	// The log itself.
	"log-signature": "do not restart anything; take a copy of the log and find out who wrote to it",
	"log-key":       "if the log was replaced on purpose, delete the kept checkpoint; else find out who replaced it",
	"log-continues": "was it restored from a backup, then keep the file of --keep as evidence and move it away; else the log was cut or rewritten: keep the older checkpoint, take a copy of the log, find out who wrote to it",
	"log-verified":  "take a copy of the log and verify it offline (sallyport audit verify); restore its directory from a backup",
}

// Remedy says what to do about a rule that is broken.
func Remedy(rule string) string { return remedies[rule] }
