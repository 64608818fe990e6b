package doctor

// remedies say what to do, by rule. docs/doctor.md explains each.
var remedies = map[string]string{
	// Every store.
	"outbox-stuck":    "NATS is away or full. Nothing is lost. The service's log has the error: \"events wait in the outbox\"",
	"event-skipped":   "the service's log has \"event skipped for ever\" with the reason. If the service is older than the one that sent the event, upgrade it",
	"event-postponed": "the message says why it fails. The service tries it every minute, and goes on by itself once the cause is repaired",
	"lease":           "stop all replicas of the service, delete the row of this lease in table lease, start them",
	"event-readable":  "the store is damaged: restore the store from a backup (docs/backup.md)",
	"database":        "the disk or the file is damaged: restore the store from a backup (docs/backup.md)",
	"consumer-lag":    "the service's log has \"not handled yet\" or \"not being received\" with the error. It goes on by itself once the cause is repaired",
	// The issuer's.
	"request-ended":             "somebody changed the store by hand, or it is damaged: restore the store from a backup (docs/backup.md)",
	"request-abandoned":         "sallyport request cancel ID; the deployer asks again",
	"request-overdue":           "the issuer's worker does not work, or is far behind: see the issuer's log",
	"intent-open":               "the CA cannot be asked what became of it: see the message and the issuer's log",
	"issued-once":               "restore the issuer's store from a backup. Revoke a certificate that no request knows",
	"certificate-of-request":    "restore the issuer's store from a backup. If nobody wants the certificate, revoke it",
	"serial-once":               "stop issuing from this authority, and revoke both certificates",
	"order-of-request":          "sallyport request cancel ID; the deployer asks again",
	"order-once":                "sallyport request cancel ID for both; the deployer asks again",
	"csr-kept":                  "sallyport renew deployment NAME: a new generation makes a new CSR",
	"authority-of-request":      "its authority was deleted: sallyport request cancel ID",
	"chain-kept":                "restore the issuer's store from a backup, or renew the deployment that uses the certificate",
	"challenge-left":            "harmless for certificates. The host may still answer the challenge: restart its agent",
	"claim":                     "the clocks of the issuer's replicas differ: set them",
	"revocation-listed":         "the issuer's log has \"a CRL is not made\" with the error",
	"revocation-of-certificate": "restore the issuer's store from a backup",
	"crl-late":                  "the issuer's log has \"a CRL is not made\" with the error",
	"crl-complete":              "somebody changed the store by hand, or it is damaged: restore it from a backup, then revoke again what was revoked after the backup",
	"certificate-bytes":         "the store is damaged: restore the store from a backup (docs/backup.md)",
	// The deployer's.
	"assignment-once":          "delete the deployment and apply it again",
	"assignment-of-deployment": "apply the deployment again, then delete it",
	"host-of-assignment":       "restart the host's agent: it then reads everything anew. If that does not help, restore the store from a backup",
	"told-generation":          "sallyport renew deployment NAME: a new generation is higher than what the agent was told",
	"certificate-assigned":     "sallyport renew deployment NAME",
	"served-is-assigned":       "sallyport renew deployment NAME",
	"retry-overdue":            "the deployer's loops do not work, or are far behind: see the deployer's log",
	"agent-key":                "sallyport agent remove HOST, then enrol the host again",
	"token-once":               "sallyport agent lock HOST, then find out how that host got the token",
	"report-of-assignment":     "the deployer's store is older than the reports of its agents. If it was restored from a backup, apply the deployments again",
	// The inventory's.
	"certificate-summary": "it is corrected when the certificate is next seen. To have it scanned now, restart the host's agent",
	"sighting-known":      "restart the host's agent: its first scan reports the certificate again",
	"issued-for":          "the inventory's store is damaged: restore it from a backup",
	"assignment-known":    "sallyport renew deployment NAME: its next step is reported again",
	"judgement-overdue":   "the inventory's watch does not work, or is far behind: see the inventory's log",
	// The audit service's.
	"log-indexed":   "stop the audit service, empty its database (it is rebuilt from the log), start it. If the same position is reported again, the log has an event twice",
	"log-published": "the index is older than the stream: stop the audit service, empty its database (it is rebuilt from the log), start it",
	// Between services.
	"event-recorded":      "if NATS was down, wait. If its data was lost, the events before that are only in the store of the service: keep this report as evidence of the gap",
	"record-of-event":     "the store of a service was restored from a backup or replaced. The audit log is right: compare what it says with what is there",
	"request-of-wish":     "if nobody wants it: sallyport request cancel ID. If the deployer's store was restored from a backup, that is the cause",
	"request-wanted":      "sallyport request cancel ID",
	"wish-requested":      "the deployer's log has \"asking the issuer\" with the error",
	"certificate-once":    "restore the issuer's store from a backup",
	"certificate-known":   "if messages wait for the inventory (row \"events consumed\"), look again later with a longer --grace. If none wait, the inventory has missed an event that nobody sends again: see its log, and renew the certificate",
	"certificate-issued":  "the issuer's store is older than the certificate: was it restored from a backup? If nobody wants the certificate, revoke it at the CA",
	"certificate-of-wish": "sallyport renew deployment NAME",
	"served-seen":         "if messages wait for the inventory (row \"events consumed\"), look again later with a longer --grace. If none wait, restart the host's agent: it then reports again. If that does not help, renew the deployment",
	// The log itself.
	"log-signature": "restart nothing. Copy the log's directory, and find out who wrote to it",
	"log-key":       "if you replaced the log on purpose, delete the kept checkpoint. If not, find out who replaced the log",
	"log-continues": "if it was restored from a backup: move the file of --keep away, and keep it as evidence. Otherwise the log was cut or rewritten: keep the older checkpoint, copy the log, find out who wrote to it",
	"log-verified":  "copy the log and verify the copy offline (sallyport audit verify). Restore the log's directory from a backup",
}

// Remedy says what to do about a rule that is broken.
func Remedy(rule string) string { return remedies[rule] }
