-- Made by langchain-postgres 0.0.19, PGVector, on pgvector 0.8.5; scripts/foreign-tables makes it again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE public.langchain_pg_collection (
    uuid uuid NOT NULL,
    name character varying NOT NULL,
    cmetadata json
);

CREATE TABLE public.langchain_pg_embedding (
    id character varying NOT NULL,
    collection_id uuid,
    embedding public.vector,
    document character varying,
    cmetadata jsonb
);

INSERT INTO public.langchain_pg_collection VALUES ('000000c0-0000-4000-8000-000000000000', 'tides', 'null');
INSERT INTO public.langchain_pg_collection VALUES ('000000c0-0000-4000-8000-000000000001', 'birds', 'null');

INSERT INTO public.langchain_pg_embedding VALUES ('tides-00000001-0000-4000-8000-000000000000', '000000c0-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]', 'a heron waits', '{"n": 0, "kind": "bird"}');
INSERT INTO public.langchain_pg_embedding VALUES ('tides-00000002-0000-4000-8000-000000000000', '000000c0-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]', 'the tide turns', '{"n": 1, "kind": "sea"}');
INSERT INTO public.langchain_pg_embedding VALUES ('tides-00000003-0000-4000-8000-000000000000', '000000c0-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]', 'rain on slate', '{"n": 2, "kind": "sky"}');
INSERT INTO public.langchain_pg_embedding VALUES ('birds-00000004-0000-4000-8000-000000000000', '000000c0-0000-4000-8000-000000000001', '[-0.125,-0.75,0.25,-1,0.875,0.75]', 'seven bells', '{"n": 3, "kind": "sea"}');
INSERT INTO public.langchain_pg_embedding VALUES ('birds-00000005-0000-4000-8000-000000000000', '000000c0-0000-4000-8000-000000000001', '[0.75,-1,1,1,0.125,0.75]', 'salt and rope', '{"n": 4, "kind": "sea"}');

ALTER TABLE ONLY public.langchain_pg_collection
    ADD CONSTRAINT langchain_pg_collection_name_key UNIQUE (name);

ALTER TABLE ONLY public.langchain_pg_collection
    ADD CONSTRAINT langchain_pg_collection_pkey PRIMARY KEY (uuid);

ALTER TABLE ONLY public.langchain_pg_embedding
    ADD CONSTRAINT langchain_pg_embedding_pkey PRIMARY KEY (id);

CREATE INDEX ix_cmetadata_gin ON public.langchain_pg_embedding USING gin (cmetadata jsonb_path_ops);

ALTER TABLE ONLY public.langchain_pg_embedding
    ADD CONSTRAINT langchain_pg_embedding_collection_id_fkey FOREIGN KEY (collection_id) REFERENCES public.langchain_pg_collection(uuid) ON DELETE CASCADE;
