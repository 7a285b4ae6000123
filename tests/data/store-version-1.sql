BEGIN TRANSACTION;
CREATE TABLE ban (
	first TEXT NOT NULL,
	second TEXT NOT NULL,
	PRIMARY KEY (first, second),
	FOREIGN KEY(first) REFERENCES job (id) ON DELETE CASCADE,
	FOREIGN KEY(second) REFERENCES job (id) ON DELETE CASCADE
);
INSERT INTO "ban" VALUES('job-001','job-002');
CREATE TABLE checkpoint (
	job TEXT NOT NULL,
	epoch INTEGER NOT NULL,
	step BIGINT NOT NULL,
	path TEXT NOT NULL,
	sha256 TEXT NOT NULL,
	num_bytes BIGINT NOT NULL,
	time DOUBLE NOT NULL,
	PRIMARY KEY (job, epoch, step),
	FOREIGN KEY(job) REFERENCES job (id) ON DELETE CASCADE
);
INSERT INTO "checkpoint" VALUES('job-002',1,5,'jobs/job-002/ckpt/1-5.safetensors','cc',10,1.0);
CREATE TABLE command (
	sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	job TEXT NOT NULL,
	verb TEXT NOT NULL,
	"by" TEXT NOT NULL,
	time DOUBLE NOT NULL,
	outcome TEXT,
	FOREIGN KEY(job) REFERENCES job (id) ON DELETE CASCADE
);
INSERT INTO "command" VALUES(1,'job-002','checkpoint','ada',1800000011.0,'done: step 5');
INSERT INTO "command" VALUES(2,'job-001','pause','bob',1800000011.0,NULL);
CREATE TABLE job (
	id TEXT NOT NULL,
	name TEXT NOT NULL,
	user TEXT NOT NULL,
	spec TEXT NOT NULL,
	content_sha256 TEXT NOT NULL,
	client_token TEXT,
	state TEXT NOT NULL,
	reason TEXT NOT NULL,
	priority INTEGER NOT NULL,
	weight DOUBLE NOT NULL,
	deadline_seconds DOUBLE,
	max_retries INTEGER NOT NULL,
	num_bytes BIGINT NOT NULL,
	submit_time DOUBLE NOT NULL,
	not_before DOUBLE,
	epoch INTEGER NOT NULL,
	holder TEXT,
	lease_expires DOUBLE,
	boot_id TEXT,
	slot INTEGER,
	num_threads INTEGER,
	steps_done BIGINT NOT NULL,
	steps_total BIGINT,
	loss DOUBLE,
	metrics TEXT NOT NULL,
	step_seconds DOUBLE,
	memory_bytes BIGINT,
	training_seconds DOUBLE NOT NULL,
	started_time DOUBLE,
	finished_time DOUBLE,
	num_job_failures INTEGER NOT NULL,
	num_infra_failures INTEGER NOT NULL,
	num_blames INTEGER NOT NULL,
	is_alone BOOLEAN NOT NULL,
	last_fault TEXT,
	admission TEXT,
	result_path TEXT,
	PRIMARY KEY (id),
	CONSTRAINT job_client_token UNIQUE (user, client_token)
);
INSERT INTO "job" VALUES('job-000','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000000','token-0','queued','waits to be checked',-1,1.0,NULL,2,100,1800000000.0,NULL,0,NULL,NULL,NULL,NULL,NULL,0,40,NULL,'{}',NULL,16777216,0.0,NULL,NULL,0,0,0,0,NULL,'{"signature": "lenet", "batch_bytes": 1024}',NULL);
INSERT INTO "job" VALUES('job-001','lenet','bob','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000001',NULL,'loading','its turn',0,1.0,NULL,2,100,1800000001.0,NULL,1,'h1',5032.0,'first boot',0,NULL,0,NULL,NULL,'{}',NULL,NULL,0.0,NULL,NULL,0,0,0,0,NULL,NULL,NULL);
INSERT INTO "job" VALUES('job-002','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000002',NULL,'running','to running',1,1.0,NULL,2,100,1800000002.0,NULL,1,'h1',5033.0,'first boot',0,NULL,7,40,0.25,'{"accuracy": 0.5}',NULL,16777216,1.5,1800000003.0,NULL,0,0,0,0,NULL,'{"signature": "lenet", "batch_bytes": 1024}',NULL);
INSERT INTO "job" VALUES('job-003','lenet','bob','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000003','token-3','pausing','to pausing',2,1.0,NULL,2,100,1800000003.0,NULL,1,'h1',5034.0,'first boot',0,NULL,0,NULL,NULL,'{}',NULL,NULL,0.0,NULL,NULL,0,0,0,0,NULL,NULL,NULL);
INSERT INTO "job" VALUES('job-004','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000004',NULL,'paused','to paused',-1,1.0,NULL,2,100,1800000004.0,NULL,0,NULL,NULL,NULL,NULL,NULL,0,40,NULL,'{}',NULL,16777216,0.0,NULL,NULL,0,0,0,0,NULL,'{"signature": "lenet", "batch_bytes": 1024}',NULL);
INSERT INTO "job" VALUES('job-005','lenet','bob','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000005',NULL,'cancelling','to cancelling',0,1.0,NULL,2,100,1800000005.0,NULL,1,'h1',5036.0,'first boot',0,NULL,0,NULL,NULL,'{}',NULL,NULL,0.0,NULL,NULL,0,0,0,0,NULL,NULL,NULL);
INSERT INTO "job" VALUES('job-006','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000006','token-6','retry-wait','to retry-wait',1,1.0,NULL,2,100,1800000006.0,NULL,1,NULL,NULL,NULL,NULL,NULL,0,40,NULL,'{}',NULL,16777216,0.0,NULL,NULL,0,0,0,0,NULL,'{"signature": "lenet", "batch_bytes": 1024}',NULL);
INSERT INTO "job" VALUES('job-007','lenet','bob','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000007',NULL,'finished','to finished',2,1.0,NULL,2,100,1800000007.0,NULL,1,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'{}',NULL,NULL,0.0,1800000008.0,1800000008.0,0,0,0,0,NULL,NULL,NULL);
INSERT INTO "job" VALUES('job-008','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000008',NULL,'failed','to failed',-1,1.0,NULL,2,100,1800000008.0,NULL,0,NULL,NULL,NULL,NULL,NULL,0,40,NULL,'{}',NULL,16777216,0.0,NULL,1800000009.0,0,0,0,0,NULL,'{"signature": "lenet", "batch_bytes": 1024}',NULL);
INSERT INTO "job" VALUES('job-009','lenet','bob','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000009','token-9','dead','to dead',0,1.0,NULL,2,100,1800000009.0,NULL,1,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'{}',NULL,NULL,0.0,NULL,1800000010.0,0,0,0,0,NULL,NULL,NULL);
INSERT INTO "job" VALUES('job-010','lenet','ada','{"epochs": 2}','000000000000000000000000000000000000000000000000000000000000000a',NULL,'cancelled','to cancelled',1,1.0,NULL,2,100,1800000010.0,NULL,0,NULL,NULL,NULL,NULL,NULL,0,40,NULL,'{}',NULL,16777216,0.0,NULL,1800000011.0,0,0,0,0,NULL,'{"signature": "lenet", "batch_bytes": 1024}',NULL);
INSERT INTO "job" VALUES('job-020','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000014',NULL,'queued','waits to be checked',0,1.0,NULL,2,100,1800000011.0,NULL,0,NULL,NULL,NULL,NULL,NULL,0,NULL,NULL,'{}',NULL,NULL,0.0,NULL,NULL,0,0,0,0,NULL,NULL,NULL);
INSERT INTO "job" VALUES('job-021','lenet','ada','{"epochs": 2}','0000000000000000000000000000000000000000000000000000000000000015',NULL,'queued','waits to be checked',0,1.0,NULL,2,100,1800000011.0,NULL,0,NULL,NULL,NULL,NULL,NULL,0,10,NULL,'{}',NULL,33554432,0.0,NULL,NULL,0,0,0,0,NULL,'{"signature": "resnet"}',NULL);
CREATE TABLE meta (
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema_version','1');
CREATE TABLE policy_state (
	name TEXT NOT NULL,
	state TEXT NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "policy_state" VALUES('las','{"level": {"job-001": 2}}');
CREATE TABLE tick (
	name TEXT NOT NULL,
	last_ok DOUBLE NOT NULL,
	PRIMARY KEY (name)
);
INSERT INTO "tick" VALUES('spool',1800000011.0);
CREATE TABLE transition (
	sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	job TEXT NOT NULL,
	old TEXT,
	new TEXT NOT NULL,
	epoch INTEGER NOT NULL,
	time DOUBLE NOT NULL,
	reason TEXT NOT NULL,
	"by" TEXT NOT NULL,
	FOREIGN KEY(job) REFERENCES job (id) ON DELETE CASCADE
);
INSERT INTO "transition" VALUES(1,'job-000',NULL,'queued',0,1800000000.0,'submitted','ada');
INSERT INTO "transition" VALUES(2,'job-001',NULL,'queued',0,1800000001.0,'submitted','ada');
INSERT INTO "transition" VALUES(3,'job-001','queued','loading',1,1800000002.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(4,'job-002',NULL,'queued',0,1800000002.0,'submitted','ada');
INSERT INTO "transition" VALUES(5,'job-002','queued','loading',1,1800000003.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(6,'job-002','loading','running',1,1800000003.0,'to running','test');
INSERT INTO "transition" VALUES(7,'job-003',NULL,'queued',0,1800000003.0,'submitted','ada');
INSERT INTO "transition" VALUES(8,'job-003','queued','loading',1,1800000004.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(9,'job-003','loading','pausing',1,1800000004.0,'to pausing','test');
INSERT INTO "transition" VALUES(10,'job-004',NULL,'queued',0,1800000004.0,'submitted','ada');
INSERT INTO "transition" VALUES(11,'job-004','queued','paused',0,1800000005.0,'to paused','test');
INSERT INTO "transition" VALUES(12,'job-005',NULL,'queued',0,1800000005.0,'submitted','ada');
INSERT INTO "transition" VALUES(13,'job-005','queued','loading',1,1800000006.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(14,'job-005','loading','cancelling',1,1800000006.0,'to cancelling','test');
INSERT INTO "transition" VALUES(15,'job-006',NULL,'queued',0,1800000006.0,'submitted','ada');
INSERT INTO "transition" VALUES(16,'job-006','queued','loading',1,1800000007.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(17,'job-006','loading','retry-wait',1,1800000007.0,'to retry-wait','test');
INSERT INTO "transition" VALUES(18,'job-007',NULL,'queued',0,1800000007.0,'submitted','ada');
INSERT INTO "transition" VALUES(19,'job-007','queued','loading',1,1800000008.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(20,'job-007','loading','running',1,1800000008.0,'to running','test');
INSERT INTO "transition" VALUES(21,'job-007','running','finished',1,1800000008.0,'to finished','test');
INSERT INTO "transition" VALUES(22,'job-008',NULL,'queued',0,1800000008.0,'submitted','ada');
INSERT INTO "transition" VALUES(23,'job-008','queued','failed',0,1800000009.0,'to failed','test');
INSERT INTO "transition" VALUES(24,'job-009',NULL,'queued',0,1800000009.0,'submitted','ada');
INSERT INTO "transition" VALUES(25,'job-009','queued','loading',1,1800000010.0,'its turn','supervisor');
INSERT INTO "transition" VALUES(26,'job-009','loading','dead',1,1800000010.0,'to dead','test');
INSERT INTO "transition" VALUES(27,'job-010',NULL,'queued',0,1800000010.0,'submitted','ada');
INSERT INTO "transition" VALUES(28,'job-010','queued','cancelled',0,1800000011.0,'to cancelled','test');
INSERT INTO "transition" VALUES(29,'job-020',NULL,'queued',0,1800000011.0,'submitted','ada');
INSERT INTO "transition" VALUES(30,'job-021',NULL,'queued',0,1800000011.0,'submitted','ada');
CREATE TABLE usage (
	user TEXT NOT NULL,
	slot_seconds DOUBLE NOT NULL,
	byte_seconds DOUBLE NOT NULL,
	PRIMARY KEY (user)
);
INSERT INTO "usage" VALUES('ada',12.5,1000000000.0);
CREATE TABLE worker (
	sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	slot INTEGER NOT NULL,
	pid INTEGER NOT NULL,
	started DOUBLE NOT NULL,
	ended DOUBLE,
	how TEXT
);
INSERT INTO "worker" VALUES(1,0,4242,1800000011.0,1800000011.0,'signal 9');
INSERT INTO "worker" VALUES(2,0,4243,1800000011.0,NULL,NULL);
CREATE INDEX job_by_user ON job (user, submit_time, id);
CREATE INDEX job_by_state ON job (state, submit_time, id);
CREATE INDEX job_by_user_and_state ON job (user, state, submit_time, id);
CREATE INDEX job_by_time ON job (submit_time, id);
CREATE INDEX job_by_holder ON job (holder);
CREATE INDEX transition_by_job ON transition (job, sequence);
CREATE INDEX command_pending ON command (sequence) WHERE outcome IS NULL;
CREATE INDEX command_by_job ON command (job);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('transition',30);
INSERT INTO "sqlite_sequence" VALUES('command',2);
INSERT INTO "sqlite_sequence" VALUES('worker',2);
COMMIT;
