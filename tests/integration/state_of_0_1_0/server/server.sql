BEGIN TRANSACTION;
CREATE TABLE aliases (
            id INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections (id),
            alias TEXT NOT NULL, artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            UNIQUE (collection_id, alias));
INSERT INTO "aliases" VALUES(1,1,'step-4',1);
INSERT INTO "aliases" VALUES(3,1,'step-8',2);
INSERT INTO "aliases" VALUES(4,1,'latest',2);
CREATE TABLE artifact_files (
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, name TEXT NOT NULL,
            digest TEXT NOT NULL, size INTEGER NOT NULL DEFAULT 0, content TEXT, reference TEXT,
            PRIMARY KEY (artifact_id, name)) WITHOUT ROWID;
INSERT INTO "artifact_files" VALUES(1,'config.json','yPUbQZFVF4EuaOPMPtFHyg==',23,'xxh128-c8f51b41915517812e68e3cc3ed147ca',NULL);
INSERT INTO "artifact_files" VALUES(1,'model.safetensors','U7hxWNbOypDyVtM+cQAjEA==',144,'xxh128-53b87158d6ceca90f256d33e71002310',NULL);
INSERT INTO "artifact_files" VALUES(1,'optimizer.pt','rt/yFnE5h6DC9sv/w3oR8Q==',449,'xxh128-aedff216713987a0c2f6cbffc37a11f1',NULL);
INSERT INTO "artifact_files" VALUES(1,'rng_state.pth','0vPXcndOSyjqdQ4z72uueQ==',297,'xxh128-d2f3d772774e4b28ea750e33ef6bae79',NULL);
INSERT INTO "artifact_files" VALUES(1,'scheduler.pt','RfhLlv4hhNv9gHpdjdh+1w==',264,'xxh128-45f84b96fe2184dbfd807a5d8dd87ed7',NULL);
INSERT INTO "artifact_files" VALUES(1,'trainer_state.json','8RVwhRStkz7H2DbStzr5SQ==',182,'xxh128-f115708514ad933ec7d836d2b73af949',NULL);
INSERT INTO "artifact_files" VALUES(1,'training_args.bin','Gqz06FmDt/p8MOKg0Edvdg==',272,'xxh128-1aacf4e85983b7fa7c30e2a0d0476f76',NULL);
INSERT INTO "artifact_files" VALUES(2,'config.json','yPUbQZFVF4EuaOPMPtFHyg==',23,'xxh128-c8f51b41915517812e68e3cc3ed147ca',NULL);
INSERT INTO "artifact_files" VALUES(2,'model.safetensors','WcPqZzWQ0gefJmOkWNPs/g==',144,'xxh128-59c3ea673590d2079f2663a458d3ecfe',NULL);
INSERT INTO "artifact_files" VALUES(2,'optimizer.pt','2nfAh95WomkeU4We0NlBzw==',449,'xxh128-da77c087de56a2691e53859ed0d941cf',NULL);
INSERT INTO "artifact_files" VALUES(2,'rng_state.pth','z2JYbUwIHQjZ0r1ifq1q5Q==',297,'xxh128-cf62586d4c081d08d9d2bd627ead6ae5',NULL);
INSERT INTO "artifact_files" VALUES(2,'scheduler.pt','o0s/RNadFSegHfMW47LJlw==',264,'xxh128-a34b3f44d69d1527a01df316e3b2c997',NULL);
INSERT INTO "artifact_files" VALUES(2,'trainer_state.json','MFqoBXp+5F+3cy/g0JgRWw==',183,'xxh128-305aa8057a7ee45fb7732fe0d098115b',NULL);
INSERT INTO "artifact_files" VALUES(2,'training_args.bin','Gqz06FmDt/p8MOKg0Edvdg==',272,'xxh128-1aacf4e85983b7fa7c30e2a0d0476f76',NULL);
CREATE TABLE artifacts (
            id INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections (id),
            digest TEXT NOT NULL, algorithm TEXT NOT NULL, state TEXT NOT NULL, description TEXT, metadata TEXT,
            ttl_seconds INTEGER, history_step INTEGER, run_id INTEGER REFERENCES runs (id) ON DELETE SET NULL,
            client_id TEXT, wanted_aliases TEXT NOT NULL DEFAULT '[]',
            manifest TEXT, size INTEGER NOT NULL DEFAULT 0, file_count INTEGER NOT NULL DEFAULT 0,
            created_at REAL NOT NULL, updated_at REAL NOT NULL);
INSERT INTO "artifacts" VALUES(1,1,'c76b858d7f55fe633781caf62fe20aca','MANIFEST_XXH128','COMMITTED',NULL,'{"global_step":4,"epoch":0.1,"loss":0.25,"ckptsync":{"version":1,"run":"r1","step":4,"saved_at":1700000004.0,"layout":"plain","world_size":1,"resumable":true,"files":7,"bytes":1631,"fingerprint":"126bc96b5949","libraries":{"torch":"2.13.0+cpu","transformers":"5.24.0","accelerate":"1.15.0","peft":"0.21.2","safetensors":"0.8.0","wandb":"0.31.0"},"host":"node-1","output_dir":"/srv/training/out","command":["python3","/srv/training/train.py"],"cwd":"/srv/training/home"}}',NULL,NULL,2,'73nvsf8f404z8xulcioavlr02edjnbadr4hy0s4cir3rzcpcq766xcbdt432zhjuieo7yglkbe8g3i7iaiz1plsv6whnyko8n4yytw1iq7m8rkbf10gfxfuvqe41cr47','["step-4", "latest"]','md5-89108c6068493b2a69564e6e6033be4e',1631,7,1.79580209655009627334e+09,1.79580209665586447713e+09);
INSERT INTO "artifacts" VALUES(2,1,'32a74fa0cf6863e8fdbfaf73e38c29c0','MANIFEST_XXH128','COMMITTED',NULL,'{"global_step":8,"epoch":0.2,"loss":0.125,"ckptsync":{"version":1,"run":"r1","step":8,"saved_at":1700000008.0,"layout":"plain","world_size":1,"resumable":true,"files":7,"bytes":1632,"fingerprint":"b618c5105872","libraries":{"torch":"2.13.0+cpu","transformers":"5.24.0","accelerate":"1.15.0","peft":"0.21.2","safetensors":"0.8.0","wandb":"0.31.0"},"host":"node-1","output_dir":"/srv/training/out","command":["python3","/srv/training/train.py"],"cwd":"/srv/training/home"}}',NULL,1,2,'zfbj4f44esmncwmdjuq2kkxfwsxy8x19mzpvb0mollpatberd5k8bl7h2oybzxing3ut5irkpg5xngm99zjf2c7i1xba3trn3dqpvss5rrberdb4y3edjm58kcka11di','["step-8", "latest"]','md5-36f75c1bf07110a646059a230432db95',1632,7,1.79580209695084357266e+09,1.7958020970083501339e+09);
CREATE TABLE collections (
            id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            name TEXT NOT NULL, kind TEXT NOT NULL, type TEXT NOT NULL, description TEXT,
            next_version INTEGER NOT NULL DEFAULT 0, client_id TEXT, state TEXT NOT NULL DEFAULT 'READY',
            created_at REAL NOT NULL, updated_at REAL NOT NULL);
INSERT INTO "collections" VALUES(1,1,'checkpoint-r1','SEQUENCE','model',NULL,2,NULL,'READY',1.79580209655009627334e+09,1.7958020970083501339e+09);
CREATE TABLE console (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE, line INTEGER NOT NULL,
            content TEXT NOT NULL, PRIMARY KEY (run_id, line)) WITHOUT ROWID;
CREATE TABLE events (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE, line INTEGER NOT NULL,
            content TEXT NOT NULL, PRIMARY KEY (run_id, line)) WITHOUT ROWID;
CREATE TABLE history (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE, line INTEGER NOT NULL, step INTEGER,
            content TEXT NOT NULL, PRIMARY KEY (run_id, line)) WITHOUT ROWID;
CREATE TABLE inputs (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, used_as TEXT,
            PRIMARY KEY (run_id, artifact_id)) WITHOUT ROWID;
CREATE TABLE memberships (
            id INTEGER PRIMARY KEY, collection_id INTEGER NOT NULL REFERENCES collections (id),
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            version INTEGER NOT NULL, created_at REAL NOT NULL,
            UNIQUE (collection_id, artifact_id), UNIQUE (collection_id, version));
INSERT INTO "memberships" VALUES(1,1,1,0,1.79580209665586447713e+09);
INSERT INTO "memberships" VALUES(2,1,2,1,1.7958020970083501339e+09);
CREATE TABLE outputs (
            run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            artifact_id INTEGER NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
            PRIMARY KEY (run_id, artifact_id)) WITHOUT ROWID;
INSERT INTO "outputs" VALUES(1,1);
INSERT INTO "outputs" VALUES(2,1);
INSERT INTO "outputs" VALUES(1,2);
INSERT INTO "outputs" VALUES(2,2);
CREATE TABLE parts (
            content TEXT NOT NULL, number INTEGER NOT NULL, part TEXT NOT NULL,
            PRIMARY KEY (content, number)) WITHOUT ROWID;
CREATE TABLE projects (
            id INTEGER PRIMARY KEY, entity TEXT NOT NULL, name TEXT NOT NULL, description TEXT, access TEXT,
            created_at REAL NOT NULL, updated_at REAL NOT NULL, UNIQUE (entity, name));
INSERT INTO "projects" VALUES(1,'local','tests',NULL,NULL,1.79580209123665952676e+09,1.79580209123665952676e+09);
CREATE TABLE run_files (
            id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
            name TEXT NOT NULL, content TEXT, size INTEGER NOT NULL DEFAULT 0, updated_at REAL NOT NULL,
            UNIQUE (run_id, name));
CREATE TABLE runs (
            id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
            name TEXT NOT NULL, display_name TEXT, description TEXT, notes TEXT, group_name TEXT, job_type TEXT,
            config TEXT NOT NULL DEFAULT '{}', summary TEXT NOT NULL DEFAULT '{}', tags TEXT NOT NULL DEFAULT '[]',
            host TEXT, program TEXT, repo TEXT, commit_hash TEXT, sweep TEXT,
            state TEXT NOT NULL DEFAULT 'running', exit_code INTEGER, preempting INTEGER NOT NULL DEFAULT 0,
            stop_requested INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL, heartbeat_at REAL NOT NULL,
            UNIQUE (project_id, name));
INSERT INTO "runs" VALUES(1,1,'r1',NULL,NULL,NULL,NULL,NULL,'{}','{}','[]',NULL,NULL,NULL,NULL,NULL,'running',NULL,0,0,1.79580209123665952676e+09,1.79580209123665952676e+09);
INSERT INTO "runs" VALUES(2,1,'ckptsync-r1','ckptsync-r1',NULL,NULL,'r1','checkpoint-sync','{"_wandb":{"value":{"cli_version":"0.31.0","python_version":"3.11.7","t":{"5":"0.31.0","12":"0.31.0","13":"linux-x86_64","4":"3.11.7","3":[74,13,14]},"m":[]}}}','{"_runtime":0,"_wandb":{"runtime":0}}','[]','node-1','-m ckptsync.publish',NULL,NULL,NULL,'running',NULL,0,0,1.79580209634237122537e+09,1.79580209679366970066e+09);
CREATE TABLE tags (
            id INTEGER PRIMARY KEY, owner TEXT NOT NULL, owner_id INTEGER NOT NULL, name TEXT NOT NULL,
            UNIQUE (owner, owner_id, name));
CREATE INDEX history_by_step ON history (run_id, step);
CREATE INDEX run_files_by_content ON run_files (content);
CREATE UNIQUE INDEX collections_by_name ON collections (project_id, name) WHERE state = 'READY';
CREATE INDEX artifacts_by_digest ON artifacts (collection_id, digest);
CREATE INDEX artifacts_by_client ON artifacts (client_id);
CREATE INDEX artifacts_by_manifest ON artifacts (manifest);
CREATE INDEX artifact_files_by_content ON artifact_files (content);
CREATE INDEX artifact_files_by_digest ON artifact_files (digest);
CREATE INDEX parts_by_part ON parts (part);
CREATE INDEX memberships_by_artifact ON memberships (artifact_id);
CREATE INDEX aliases_by_artifact ON aliases (artifact_id);
CREATE INDEX outputs_by_artifact ON outputs (artifact_id);
CREATE INDEX inputs_by_artifact ON inputs (artifact_id);
COMMIT;
PRAGMA user_version = 1;
